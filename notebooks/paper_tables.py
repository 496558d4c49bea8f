# %% [markdown]
# # The paper's tables, and any other
#
# No model, no adapter: everything below is a view of `results/<experiment>/rows/*.jsonl`. The main
# tables of OSRM (`+experiment=paper/...`) have not been run at full size; the same comparison on a
# small encoder and reduced GLUE, `results/minilm_glue`, stands here in their place.

# %%
from pathlib import Path

from osrm_exp.report.captions import caption
from osrm_exp.report.frame import by_task, lines
from osrm_exp.report.published import beside, read_known
from osrm_exp.report.rows import read_rows
from osrm_exp.report.scores import scores
from osrm_exp.report.tables import shown

root = next(p for p in (Path(), Path("..")) if (p / "results").is_dir())
rows = read_rows(root / "results" / "minilm_glue")
found = scores(rows)
table, notes = shown(lines(found, read_rows(root / "results" / "minilm_glue", "searches")))
print("; ".join(notes))
print(caption(found))
table.drop(columns=["space", "tuned on", "output"])

# %% [markdown]
# ## What is known of the paper
#
# Published numbers stand beside ours of the same model, suite, arm and merge, and never among them.
# For RoBERTa-large there are none of ours yet.

# %%
known = read_known(root / "figures" / "known_results.csv")
known[known.paper == "2505.22934"].drop(columns=["paper", "suite", "to"]).reset_index(drop=True)

# %%
beside(known, rows)  # of MiniLM nothing is published

# %% [markdown]
# ## One task: its expert, the same model without the adapter, its floor

# %%
columns = ["init", "merge", "score", "expert", "pretrained", "floor", "lost", "marks"]
by_task(found).query("task == 'mnli'")[columns].round(1)

# %% [markdown]
# Every metric of it that was recorded:

# %%
one = rows[rows.task == "mrpc"]
one.pivot_table(index=["init", "merge"], columns="metric", values="value").round(3)
