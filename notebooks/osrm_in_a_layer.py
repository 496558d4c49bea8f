# %% [markdown]
# # What OSRM does to a layer
#
# OSRM starts the rows of a task's `A` where the *other* tasks' inputs have least energy. First a
# layer that can be drawn up by hand, then what eight trained adapters of MiniLM did to each other
# (`results/minilm_inits`).

# %%
from pathlib import Path

import pandas as pd
import torch

from osrm_exp import inits
from osrm_exp.diagnostics import tidy
from osrm_exp.report.rows import read_rows
from osrm_exp.report.scores import scores

root = next(p for p in (Path(), Path("..")) if (p / "results").is_dir())
generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## By hand: three tasks, a layer of width 64, adapters of rank 4
#
# Inputs of every task share a common part and have ten directions of their own.

# %%
width, rank, tasks = 64, 4, ["a", "b", "c"]
common = torch.randn(8, width, generator=generator)
inputs = {}
for task in tasks:
    own = torch.randn(10, width, generator=generator)
    spread = torch.randn(500, 18, generator=generator)
    noise = 0.1 * torch.randn(500, width, generator=generator)
    inputs[task] = spread @ torch.cat([common, own]) + noise
grams = {task: X.T @ X / len(X) for task, X in inputs.items()}


def answer(A, X):
    """How strongly rows of unit length answer inputs, as a share of their norm."""
    A = A / A.norm(dim=1, keepdim=True)
    return (A @ X.T).norm().item() / X.norm().item()


arms = {}
for task in tasks:
    others = torch.stack([grams[other] for other in tasks if other != task])
    arms["gaussian", task] = inits.gaussian(width, rank, generator=generator)
    arms["osrm", task] = inits.osrm(
        width, rank, generator=generator, others=others, tie_break="random"
    )
pd.DataFrame(
    {
        (arm, f"A of {task}"): {f"inputs of {s}": answer(A, inputs[s]) for s in tasks}
        for (arm, task), A in arms.items()
    }
).round(3)

# %% [markdown]
# OSRM's rows are nearly silent for the other tasks. Nothing makes them hear their own: how much of
# it they answer is what the others happen to leave. `init=osrm_own` chooses by it.
#
# ## Trained adapters
#
# Task `t`'s adapter (row) on the inputs of task `s` (column), eight GLUE tasks, two seeds;
# the modules of the queries, then those of the values.
#
# ![adapters on each other's inputs, query](../results/minilm_inits/figures/interference_query.svg)
#
# ![adapters on each other's inputs, value](../results/minilm_inits/figures/interference_value.svg)
#
# Where in the network (queries):
#
# ![by depth](../results/minilm_inits/figures/layers_query.svg)

# %% [markdown]
# ## Does less interference go with a better merge?
#
# One row an arm and seed. `ratio` is what adapters answer to others' inputs over what they answer
# to their own; the other columns are averages over the eight tasks.

# %%
results = root / "results" / "minilm_inits"
diagnostics = tidy(read_rows(results, "diagnostics"))
end = diagnostics[(diagnostics.stage == "end") & (diagnostics.metric == "response_BA")]
foreign = end[end.task != end.other].groupby(["init", "seed"]).value.mean()
own = end[end.task == end.other].groupby(["init", "seed"]).value.mean()
found = scores(read_rows(results))
merged = found.groupby(["merge", "init", "seed"]).value.mean().unstack("merge")
merged.assign(interference=foreign, own=own, ratio=foreign / own).round(3)
