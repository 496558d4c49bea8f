"""What adapters do to each other's data, as tidy rows; the quantities that OSRM is about.

All functions take one module's stack of updates and yield `{metric, task, other, value}`;
`diagnose` walks over modules and names the tasks. Grams are `[task, in, in]`, means over rows, so
that `tr(A G A^T)` is the mean squared norm of `A h` and no row of data is needed.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from osrm_exp.lora import LowRank, basis
from osrm_exp.posthoc import project

Row = dict[str, Any]


def diagnose(
    updates: Mapping[str, LowRank],
    starts: Mapping[str, Tensor],
    grams: Mapping[str, Tensor],
    tasks: Sequence[str],
) -> Iterator[Row]:
    """Every diagnostic of a suite's adapters before (`start`) and after (`end`) training.

    Args:
        updates: `{module: stack}` over `tasks`.
        starts: `{module: [task, rank, in]}`, the initial `A`; `B` was zero.
        grams: `{module: [task, in, in]}`.

    Yields:
        `{module, metric, stage, task, other, value}`; `other` is None where one task is concerned.
    """
    for module, update in updates.items():
        before = LowRank(starts[module], torch.zeros_like(update.B[..., : starts[module].shape[1]]))
        gram = grams[module]
        found = {
            "start": [r for r in responses(before, gram) if r["metric"] == "response_A"]
            + list(overlaps(before)),
            "end": [
                *responses(update, gram), *overlaps(update),
                *drifts(update, before.A), *kept(update, before.A),
            ],
        }  # fmt: skip
        for stage, rows in found.items():
            for row in rows:
                names = {k: None if row[k] is None else tasks[row[k]] for k in ("task", "other")}
                yield {"module": module, "stage": stage, **row, **names}


def responses(update: LowRank, grams: Tensor) -> Iterator[Row]:
    """How strongly the adapter of `task` reacts to the inputs of `other`, for every ordered pair.

    `response_A = ||A_t H_s^T||_F / ||H_s||_F`, and `response_BA` with `B_t A_t`. For `other ==
    task` it is the adapter's response to its own task; for the rest it is interference, which
    OSRM's initialisation minimises in `A`.
    """
    scale = grams.double().diagonal(dim1=-2, dim2=-1).sum(-1)  # mean ||h||^2, [task]
    for task, one in enumerate(update.unstack()):
        A, B = one.A.double(), one.B.double()
        moments = A @ grams.double() @ A.mT  # [task, rank, rank]
        reads = moments.diagonal(dim1=-2, dim2=-1).sum(-1)
        writes = ((B.mT @ B) * moments).sum((-2, -1))
        for metric, energy in (("response_A", reads), ("response_BA", writes)):
            values = (energy.clamp(min=0) / scale).sqrt().tolist()
            yield from (_row(metric, task, other, v) for other, v in enumerate(values))


def overlaps(update: LowRank) -> Iterator[Row]:
    """How much two tasks' factors share a subspace: 0 if orthogonal, 1 if one contains the other.

    `overlap_A` compares row spaces of `A` and `overlap_B` column spaces of `B`, as
    `||Q_t^T Q_s||_F^2 / min(rank_t, rank_s)` with orthonormal bases `Q`. A factor that is zero has
    no subspace and no row.
    """
    tasks = update.unstack()
    for metric, factors in (
        ("overlap_A", [one.A.mT for one in tasks]),
        ("overlap_B", [one.B for one in tasks]),
    ):
        bases = [basis(factor) for factor in factors]
        for (i, P), (j, Q) in combinations(enumerate(bases), 2):
            if min(P.shape[1], Q.shape[1]) > 0:
                value = ((P.mT @ Q) ** 2).sum() / min(P.shape[1], Q.shape[1])
                yield _row(metric, i, j, value.item())


def drifts(update: LowRank, starts: Tensor) -> Iterator[Row]:
    """`drift_A = ||A_end - A_start||_F / ||A_start||_F`; the paper's freedom after OSRM's start.

    Args:
        starts: `[task, rank, in]`.
    """
    for task, (one, start) in enumerate(zip(update.unstack(), starts.double(), strict=True)):
        rank = min(one.rank, len(start))  # PiSSA's update holds its negated start behind its A
        start = start[:rank]
        change = torch.linalg.matrix_norm(one.A[:rank].double() - start)
        norm = torch.linalg.matrix_norm(start)
        if norm > 0:
            yield _row("drift_A", task, None, (change / norm).item())


def kept(update: LowRank, starts: Tensor) -> Iterator[Row]:
    """`kept_energy`, the share of `||B A||_F^2` within the rows of the initial `A`.

    What post-hoc OSRM would keep of the adapter, projected on its own start. A zero update has no
    row.

    Args:
        starts: `[task, rank, in]`.
    """
    for task, (one, start) in enumerate(zip(update.unstack(), starts, strict=True)):
        if one.B.any() and one.A.any():
            yield _row("kept_energy", task, None, project(one, start, scaling=1.0)[1])


def _row(metric: str, task: int, other: int | None, value: float) -> Row:
    return {"metric": metric, "task": task, "other": other, "value": value}
