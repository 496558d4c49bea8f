"""Singular triplets of the tasks of one module, and the steps that spectral merges share.

A task is an update, as factors or as numbers `[m, n]`; results are numbers in the same coordinates.
`cut` is the share of the largest singular value at or below which a direction is rounding. Null
directions have arbitrary vectors, so only the published dense forms set it to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from osrm_exp.lora import SVD, Cores, LowRank, Update, frame, svd


def coordinates(
    stack: LowRank | Tensor,
) -> tuple[list[Update], Callable[[Tensor], LowRank | Tensor]]:
    """One module's tasks in float64, small where they are factors, and the way back.

    Factors become `[rank_t, q]` and `[p, rank_t]` in the singular bases of the stacked factors, at
    their numerical rank; a stack of numbers `[task, m, n]` stays as it is.
    """
    if isinstance(stack, Tensor):
        return list(stack.double()), lambda merged: merged.to(stack.dtype)
    together = stack.concat()
    (U, left), (V, right) = frame(together.B), frame(together.A.mT)
    tasks = [LowRank(right[:, block].mT, left[:, block]) for block in stack.blocks]
    return tasks, lambda core: Cores(U, core, V).lift(core).to(stack.A.dtype)


def rotated(stack: LowRank | Tensor, rule: Callable[..., Tensor], *settings) -> LowRank | Tensor:
    """`rule(tasks, *settings) -> [m, n]` of one module, evaluated in its small coordinates."""
    tasks, lift = coordinates(stack)
    return lift(rule(tasks, *settings))


def triplets(tasks: Sequence[Update], cut: float) -> list[SVD]:
    """Every task's SVD, cut at a share of the largest singular value of any task.

    A task that is rounding beside the others (an untrained adapter) has no directions at all.
    """
    parts = [svd(task, cut=0) for task in tasks]
    floor = cut * max((part.S[0].item() for part in parts if len(part.S)), default=0.0)
    return [above(part, floor) for part in parts]


def trained(norms: Tensor, cut: float) -> Tensor:
    """Which tasks' deltas, of these norms, are more than rounding beside the others, `[task]`."""
    return norms > cut * norms.max()


def above(part: SVD, floor: float) -> SVD:
    """The triplets stronger than `floor`."""
    return head(part, int((floor < part.S).sum()))


def head(part: SVD, count: int | None) -> SVD:
    """The leading `count` triplets, all where null."""
    return SVD(part.U[:, :count], part.S[:count], part.Vh[:count])


def decorrelated(parts: Sequence[SVD], cut: float) -> Tensor:
    """`P(U) diag(S) P(V).T` of all parts' triplets side by side, `P` the polar factor."""
    U, S = torch.cat([part.U for part in parts], dim=1), torch.cat([part.S for part in parts])
    V = torch.cat([part.Vh for part in parts]).mT
    return (polar(U, cut) * S) @ polar(V, cut).mT


def polar(columns: Tensor, cut: float) -> Tensor:
    """The nearest partial isometry: dependent columns share a direction and invent none."""
    U, _, Vh = svd(columns, cut)
    return U @ Vh


def flat(update: Update, cut: float) -> LowRank:
    """The same singular vectors, all of the mean strength."""
    U, S, Vh = svd(update, cut)
    return LowRank(Vh, U * (S.sum() / max(1, len(S))))


def without(U: Tensor, task: Update) -> Update:
    """A delta less its part in the span of U's orthonormal columns."""
    if isinstance(task, LowRank):
        return LowRank(task.A, task.B - U @ (U.mT @ task.B))
    return task - U @ (U.mT @ task)


def total(stack: LowRank | Tensor) -> Update:
    """The sum of all tasks' deltas; factors are concatenated, without forming it."""
    return stack.concat() if isinstance(stack, LowRank) else stack.sum(0)


def dense(tasks: Sequence[Update]) -> Tensor:
    """All tasks' numbers, `[task, m, n]`."""
    return torch.stack([t.delta if isinstance(t, LowRank) else t for t in tasks])


def like(update: LowRank, stack: LowRank | Tensor) -> LowRank | Tensor:
    """A result in the form and precision of the stack that it was made of."""
    if isinstance(stack, LowRank):
        return update.to(stack.A.dtype)
    return update.delta.to(stack.dtype)
