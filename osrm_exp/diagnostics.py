"""What adapters do to each other's data, as tidy rows; the quantities that OSRM is about.

All functions take one module's stack of updates and yield `{quantity, task, other, value}`;
`diagnose` walks over modules and names the tasks. Grams are `[task, in, in]`, means over rows, so
that `tr(A G A^T)` is the mean squared norm of `A h` and no row of data is needed.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from osrm_exp.lora import LowRank, basis

Row = dict[str, Any]


def diagnose(
    updates: Mapping[str, LowRank],
    tasks: Sequence[str],
    *,
    grams: Mapping[str, Tensor] | None = None,
    starts: Mapping[str, Tensor] | None = None,
) -> Iterator[Row]:
    """Every diagnostic for which there are data, one row a module, quantity and (pair of) tasks.

    Args:
        updates: `{module: stack}` over `tasks`.
        grams: `{module: [task, in, in]}`, for `response_A` and `response_BA`.
        starts: `{module: [task, rank, in]}`, the initial `A`, for `drift_A`.
    """
    for module, update in updates.items():
        rows = list(overlaps(update))
        if grams is not None:
            rows += responses(update, grams[module])
        if starts is not None:
            rows += drifts(update, starts[module])
        for row in rows:
            other = row["other"]
            yield {
                "module": module,
                **row,
                "task": tasks[row["task"]],
                "other": None if other is None else tasks[other],
            }


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
        for quantity, energy in (("response_A", reads), ("response_BA", writes)):
            values = (energy.clamp(min=0) / scale).sqrt().tolist()
            yield from (_row(quantity, task, other, v) for other, v in enumerate(values))


def overlaps(update: LowRank) -> Iterator[Row]:
    """How much two tasks' factors share a subspace: 0 if orthogonal, 1 if one contains the other.

    `overlap_A` compares row spaces of `A` and `overlap_B` column spaces of `B`, as
    `||Q_t^T Q_s||_F^2 / min(rank_t, rank_s)` with orthonormal bases `Q`. A factor that is zero has
    no subspace and no row.
    """
    tasks = update.unstack()
    for quantity, factors in (
        ("overlap_A", [one.A.mT for one in tasks]),
        ("overlap_B", [one.B for one in tasks]),
    ):
        bases = [basis(factor) for factor in factors]
        for (i, P), (j, Q) in combinations(enumerate(bases), 2):
            if min(P.shape[1], Q.shape[1]) > 0:
                value = ((P.mT @ Q) ** 2).sum() / min(P.shape[1], Q.shape[1])
                yield _row(quantity, i, j, value.item())


def drifts(update: LowRank, starts: Tensor) -> Iterator[Row]:
    """`drift_A = ||A_end - A_start||_F / ||A_start||_F`; the paper's freedom after OSRM's start.

    Args:
        starts: `[task, rank, in]`.
    """
    for task, (one, start) in enumerate(zip(update.unstack(), starts.double(), strict=True)):
        start = start[: one.rank]
        change = torch.linalg.matrix_norm(one.A.double() - start)
        norm = torch.linalg.matrix_norm(start)
        if norm > 0:
            yield _row("drift_A", task, None, (change / norm).item())


def _row(quantity: str, task: int, other: int | None, value: float) -> Row:
    return {"quantity": quantity, "task": task, "other": other, "value": value}
