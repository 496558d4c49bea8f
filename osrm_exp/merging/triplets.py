"""Singular triplets of the tasks of one module, and the steps that spectral merges share.

A task is an update, as factors or as numbers `[m, n]`; results are numbers in the same coordinates.
`cut` is the share of the largest singular value at or below which a direction is rounding. Null
directions have arbitrary vectors, so only the published dense forms set it to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from osrm_exp.lora import SVD, Dense, LowRank, svd


def rotated(stack: LowRank | Dense, rule: Callable[..., Tensor], *settings) -> LowRank | Dense:
    """`rule(tasks, *settings) -> [m, n]` of one module, evaluated in its small coordinates."""
    tasks, lift = stack.coordinates()
    return lift(rule(tasks, *settings))


def triplets(tasks: Sequence[LowRank | Dense], cut: float) -> list[SVD]:
    """Every task's SVD, cut at a share of the largest singular value of any task.

    A task that is rounding beside the others (an untrained adapter) has no directions at all.
    """
    parts = [task.svd(cut=0) for task in tasks]
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


def flat(part: SVD) -> LowRank:
    """The same singular vectors, all of the mean strength."""
    U, S, Vh = part
    return LowRank(Vh, U * (S.sum() / max(1, len(S))))


def dense(tasks: Sequence[LowRank | Dense]) -> Tensor:
    """All tasks' numbers, `[task, m, n]`."""
    return torch.stack([task.delta for task in tasks])
