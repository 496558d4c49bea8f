"""What adapters do to each other's data: the quantities that OSRM is about.

All functions take one module's stack of updates and return `{metric: values}`, with `values` over
tasks `[task]` or over ordered pairs `[task, other]`; what is undefined is NaN. Grams are
`[task, in, in]`, means over rows, so that `tr(A G A^T)` is the mean squared norm of `A h` and no
row of data is needed. `diagnose` walks over modules, `tidy` makes its rows one number a row.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from osrm_exp import needs
from osrm_exp.adapter import read_adapter, stacked
from osrm_exp.artifacts import Workshop
from osrm_exp.artifacts.fine_tune import read_start
from osrm_exp.artifacts.statistic import read_stacked
from osrm_exp.inits.posthoc import project
from osrm_exp.lazy import Lazy
from osrm_exp.lora import LowRank, basis
from osrm_exp.spec import Cell

Values = dict[str, Tensor]


def diagnosed(cell: Cell, workshop: Workshop) -> list[dict[str, Any]]:
    """The diagnostic rows of a cell's adapters, module by module; they belong to no merge."""
    folders = workshop.store.get_all(needs.fine_tunes(cell), workshop)
    updates = stacked([read_adapter(folder).updates for folder in folders])
    starts = [read_start(folder) for folder in folders]
    started = Lazy(starts[0], lambda module: torch.stack([start[module] for start in starts]))
    grams = read_stacked(workshop.store.get_all(needs.of_diagnostics(cell), workshop))
    of = {
        "cell": cell.digest, "init": cell.arm, "seed": cell.seed,
        "tasks": [task.name for task in cell.tasks],
    }  # fmt: skip
    return [{**of, **row} for row in diagnose(updates, started, grams)]


def diagnose(
    updates: Mapping[str, LowRank], starts: Mapping[str, Tensor], grams: Mapping[str, Tensor]
) -> Iterator[dict[str, Any]]:
    """Every diagnostic of a suite's adapters before (`start`) and after (`end`) training.

    Args:
        updates: `{module: stack}`.
        starts: `{module: [task, rank, in]}`, the initial `A`; `B` was zero.
        grams: `{module: [task, in, in]}`.

    Yields:
        `{module, stage, metric, values}`, values as nested lists with four digits.
    """
    for module, update in updates.items():
        start, gram = starts[module], grams[module]
        before = LowRank(start, torch.zeros_like(update.B[..., : start.shape[1]]))
        stages = {
            "start": {"response_A": responses(before, gram)["response_A"],
                      "overlap_A": overlaps(before)["overlap_A"]},
            "end": {**responses(update, gram), **overlaps(update),
                    **drifts(update, start), **kept(update, start)},
        }  # fmt: skip
        for stage, found in stages.items():
            for metric, values in found.items():
                yield {
                    "module": module, "stage": stage, "metric": metric, "values": _lists(values),
                }  # fmt: skip


def responses(update: LowRank, grams: Tensor) -> Values:
    """How strongly the adapter of a task reacts to the inputs of another: `[task, other]`.

    `response_A = ||A_t H_s^T||_F / ||H_s||_F`, and `response_BA` with `B_t A_t`. The diagonal is
    the adapter's response to its own task; the rest is interference, which OSRM's initialisation
    minimises in `A`.
    """
    A, B, G = update.A.double(), update.B.double(), grams.double()
    scale = G.diagonal(dim1=-2, dim2=-1).sum(-1)  # mean ||h||^2, [other]
    moments = torch.stack([a @ G @ a.mT for a in A])  # [task, other, rank, rank]
    reads = moments.diagonal(dim1=-2, dim2=-1).sum(-1)
    writes = ((B.mT @ B)[:, None] * moments).sum((-2, -1))
    energies = {"response_A": reads, "response_BA": writes}
    return {metric: (e.clamp(min=0) / scale).sqrt() for metric, e in energies.items()}


def overlaps(update: LowRank) -> Values:
    """How much two tasks' factors share a subspace: 0 if orthogonal, 1 if one contains the other.

    `overlap_A` compares row spaces of `A` and `overlap_B` column spaces of `B`, as
    `||Q_t^T Q_s||_F^2 / min(rank_t, rank_s)` with orthonormal bases `Q`; symmetric. A factor that
    is zero has no subspace, and a task no overlap with itself.
    """
    tasks = update.unstack()
    factors = {"overlap_A": [u.A.mT for u in tasks], "overlap_B": [u.B for u in tasks]}
    return {metric: _overlap([basis(f) for f in found]) for metric, found in factors.items()}


def _overlap(bases: list[Tensor]) -> Tensor:
    values = torch.full((len(bases), len(bases)), torch.nan, dtype=torch.float64)
    for (i, P), (j, Q) in combinations(enumerate(bases), 2):
        if rank := min(P.shape[1], Q.shape[1]):
            values[i, j] = values[j, i] = ((P.mT @ Q) ** 2).sum() / rank
    return values


def drifts(update: LowRank, starts: Tensor) -> Values:
    """`drift_A = ||A_end - A_start||_F / ||A_start||_F`; the paper's freedom after OSRM's start.

    Args:
        update: the trained stack, `A [task, rank, in]`.
        starts: `[task, rank, in]`. PiSSA's update holds its negated start behind its `A`.
    """
    start, end = starts.double(), update.A[:, : starts.shape[1]].double()
    change, norm = (torch.linalg.matrix_norm(x) for x in (end - start, start))
    return {"drift_A": change / norm}  # 0 / 0: a task that does not adapt the module


def kept(update: LowRank, starts: Tensor) -> Values:
    """`kept_energy`, the share of `||B A||_F^2` within the rows of the initial `A`.

    What post-hoc OSRM would keep of the adapter, projected on its own start.

    Args:
        update: the trained stack, `A [task, rank, in]`.
        starts: `[task, rank, in]`.
    """
    shares = [
        project(one, start)[1] if one.B.any() and one.A.any() else torch.nan
        for one, start in zip(update.unstack(), starts, strict=True)
    ]
    return {"kept_energy": torch.tensor(shares, dtype=torch.float64)}


def tidy(rows: pd.DataFrame) -> pd.DataFrame:
    """Diagnostic rows with one number each: `task`, `other` and `value` in place of lists.

    `other` is None where one task is concerned; what is undefined is left out.
    """
    found = []
    for row in rows.to_dict("records"):
        tasks, values = row.pop("tasks"), row.pop("values")
        for task, value in zip(tasks, values):
            pairs = zip(tasks, value) if isinstance(value, list) else [(None, value)]
            found += [{**row, "task": task, "other": o, "value": v} for o, v in pairs]
    return pd.DataFrame(found).dropna(subset="value", ignore_index=True)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means of tidy rows over modules, tasks and seeds: one line an init.

    Columns are `metric stage`; what is over pairs of tasks is split into `own` (a task with itself)
    and `foreign`.
    """
    pair = rows.other.notna()
    own = pair & (rows.task == rows.other)
    whose = pd.Series("", rows.index).mask(pair, " foreign").mask(own, " own")
    column = rows.metric + " " + rows.stage + whose
    return rows.value.groupby([rows.init, column]).mean().unstack()


def _lists(values: Tensor) -> list:
    """Nested lists with four significant digits; None for NaN, which JSON does not know."""
    if values.dim() > 1:
        return [_lists(line) for line in values]
    return [None if v != v else float(f"{v:.4g}") for v in values.tolist()]
