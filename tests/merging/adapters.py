"""Small random adapters, and what the tests of several families measure on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from golden import dense
from torch import Tensor

from osrm_exp.lora import LowRank, Update, stack

SHAPES = {"layer0.q": (12, 10), "layer0.v": (9, 14)}  # (out, in)


def adapters(
    ranks: Sequence[int] = (3, 3, 3), seed: int = 0, dtype: torch.dtype = torch.float64
) -> dict[str, LowRank]:
    """Gaussian factors for every module of `SHAPES`, one task a rank."""
    g = torch.Generator().manual_seed(seed)

    def draw(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=g, dtype=torch.float64).to(dtype)

    return {
        module: stack([LowRank(draw(r, n), draw(m, r)) for r in ranks])
        for module, (m, n) in SHAPES.items()
    }


def grams(tasks: int, seed: int = 1, rows: int = 40) -> dict[str, Tensor]:
    """Well-conditioned second moments `[task, in, in]` of every module's inputs."""
    g = torch.Generator().manual_seed(seed)
    draw = {m: torch.randn(tasks, rows, n, generator=g).double() for m, (_, n) in SHAPES.items()}
    return {module: X.mT @ X / rows for module, X in draw.items()}


def repeated(updates: dict[str, LowRank], tasks: int) -> dict[str, LowRank]:
    """The first task `tasks` times."""
    return {module: stack([u.unstack()[0]] * tasks) for module, u in updates.items()}


def permuted(updates: dict[str, LowRank], order: Sequence[int]) -> dict[str, LowRank]:
    """The tasks in another order."""
    return {m: stack([u.unstack()[t] for t in order]) for m, u in updates.items()}


def regauged(updates: dict[str, LowRank], seed: int = 5) -> dict[str, LowRank]:
    """The same deltas from other factors, `(B G, G^-1 A)`."""
    g = torch.Generator().manual_seed(seed)
    changed = {}
    for module, update in updates.items():
        tasks = []
        for u in update.unstack():
            G = torch.randn(u.rank, u.rank, generator=g).to(u.A) + 2 * torch.eye(u.rank).to(u.A)
            tasks.append(LowRank(torch.linalg.solve(G, u.A), u.B @ G))
        changed[module] = stack(tasks)
    return changed


def rank_of(update: Update) -> int:
    """Numerical rank of the delta."""
    return int(torch.linalg.matrix_rank(dense(update), rtol=1e-9))
