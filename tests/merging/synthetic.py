"""Random adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
