"""Random adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from osrm_exp.lora import LowRank, stack

SHAPES = {"layer0.q": (9, 8), "layer1.v": (7, 10)}  # (out, in)


def adapters(
    ranks: Sequence[int] = (2, 2, 2),
    seed: int = 0,
    shapes: Mapping[str, tuple[int, int]] = SHAPES,
    dtype: torch.dtype = torch.float64,
) -> dict[str, LowRank]:
    """Random adapters with a part that all tasks share, `ranks` one a task."""
    g = torch.Generator().manual_seed(seed)

    def factor(rank: int, width: int) -> Tensor:
        own, common = (torch.randn(rank, width, generator=g, dtype=dtype) for _ in range(2))
        return own + common.sum(0) / 2

    return {
        module: stack([LowRank(factor(r, n), factor(r, m).mT / 3) for r in ranks])
        for module, (m, n) in shapes.items()
    }


def changed(
    updates: Mapping[str, LowRank], change: Callable[[int, LowRank], LowRank]
) -> dict[str, LowRank]:
    """The same stacks with `change(task, update)` for every task's update."""
    return {
        module: stack([change(t, u) for t, u in enumerate(update.unstack())])
        for module, update in updates.items()
    }


def orthogonal(
    ranks: Sequence[int] = (2, 1, 3), shape: tuple[int, int] = (9, 8)
) -> dict[str, LowRank]:
    """Adapters whose row spaces and column spaces are orthogonal to each other."""
    g = torch.Generator().manual_seed(0)
    m, n = shape
    Q_B, Q_A = (
        torch.linalg.qr(torch.randn(w, w, generator=g, dtype=torch.float64)).Q for w in (m, n)
    )
    tasks, start = [], 0
    for rank in ranks:
        part = slice(start, start + rank)
        mixed = torch.randn(rank, rank, generator=g, dtype=torch.float64)
        tasks.append(LowRank(Q_A[part], Q_B[:, part] @ mixed))
        start += rank
    return {"w": stack(tasks)}
