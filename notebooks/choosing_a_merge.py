# %% [markdown]
# # Choosing a merging method
#
# From the committed rows of `results/minilm_linear`: eight GLUE tasks, LoRA of rank 16 on every
# linear layer of a small encoder, two seeds. It says how to look, not which method is best.

# %%
from pathlib import Path

from osrm_exp.report.frame import lines
from osrm_exp.report.paired import UNITS, differences, paired
from osrm_exp.report.rows import read_rows
from osrm_exp.report.scores import scores
from osrm_exp.report.tables import shown

root = next(p for p in (Path(), Path("..")) if (p / "results").is_dir())
rows = read_rows(root / "results" / "minilm_linear")
found = scores(rows)
table, notes = shown(lines(found))
columns = ["init", "merge", "settings", "tuned on", "output", "average", "lost"]
table[[*columns, *({"recovered"} & set(table))]]

# %% [markdown]
# Three questions decide before any average does:
#
# 1. **May a task be named when the model runs?** EMR and masks keep a result a task (`output` says
#    `per_task`); the others are one model for all.
# 2. **Must it stay small?** A `lowrank` result is an adapter again; a `dense` one a checkpoint.
# 3. **Is there data to choose with?** `tuned on: none` needs none; a coefficient is chosen on a
#    held-out slice of train.
#
# ## Points lost against the tasks' own experts

# %%
lost = found[~found["merge"].isin(["pretrained", "individual"])]
lost.groupby(["merge", "task"], sort=False).lost.mean().unstack().round(1)

# %% [markdown]
# ## Task by task
#
# Bars are merged scores, the line is the task's expert, the dotted line the model without adapters.
#
# ![task by task](../results/minilm_linear/figures/tasks.svg)
#
# ## Is one arm better than another? Seed by seed first, then what is drawn
#
# Two seeds say little; the interval over seeds says how little.

# %%
gains, missing = differences(rows, "gaussian")
gains.groupby(["merge", "init", "seed"]).gain.mean().unstack().round(1)

# %%
print("\n".join(f"{unit}: conditional on {condition}" for unit, condition in UNITS.items()))
compared = paired(rows, "gaussian", delta=1.0)
columns = ["merge", "init", "unit", "difference", "low", "high", "p_holm", "p_equivalent"]
compared[compared.unit.isin(["seed", "task"])][columns].round(2)
