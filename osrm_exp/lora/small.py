"""Small coordinates that all tasks of a stack share, exactly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from osrm_exp.lora.linalg import RANK_CUT, frame
from osrm_exp.lora.low_rank import LowRank, lifted


class Cores(NamedTuple):
    """Coordinates in which every task's delta is a small matrix: `delta_t = U @ core_t @ V.T`."""

    U: Tensor  # [out, p], orthonormal columns
    core: Tensor  # [task, p, q]
    V: Tensor  # [in, q], orthonormal columns

    def lift(self, core: Tensor) -> LowRank:
        """A merged core `[*, p, q]` back as an update of rank `min(p, q)`."""
        return lifted(self.U, core, self.V)


def cores(updates: LowRank, cut: float = RANK_CUT) -> Cores:
    """Exact cores of a stack in singular bases of its stacked factors, float64; see `framed`."""
    U, tasks, V = framed(updates, cut)
    return Cores(U, torch.stack([task.delta for task in tasks]), V)


def framed(updates: LowRank, cut: float = RANK_CUT) -> tuple[Tensor, list[LowRank], Tensor]:
    """`(U [out, p], every task's core as factors [rank_t, q] and [p, rank_t], V [in, q])`, float64.

    The bases are cut at the numerical rank, so that adapters that share or overlap in A or B (one
    frozen A, duplicates, an untrained B) leave no null direction in the core. Which directions
    there are depends on the deltas alone; the bases are those of the factors as they were trained.
    """
    even, together = updates.evened(), updates.total()
    (U, left), (V, right) = frame(together.B, cut), frame(together.A.mT, cut)
    if even is not updates:
        U, left = _turned(frame(even.total().B, cut)[0], together.B)
        V, right = _turned(frame(even.total().A.mT, cut)[0], together.A.mT)
    return U, [LowRank(right[:, block].mT, left[:, block]) for block in updates.blocks], V


def _turned(U: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The singular vectors of `columns` that span what U does, and the coordinates in them."""
    inner = U.mT @ columns.double()
    P = torch.linalg.svd(inner, full_matrices=False).U
    return U @ P, P.mT @ inner
