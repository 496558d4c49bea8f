"""Low-rank updates: the stack that a merge method receives, and the exact algebra on it.

Notation: a task's **delta** is `B @ A`, with `A [rank, in]` and `B [out, rank]` and LoRA's scaling
folded into `B`. `R` is the sum of the tasks' ranks. Nothing here forms an `[out, in]` matrix unless
its name says `delta`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

RANK_CUT = 1e-6  # singular values below this share of the largest are rounding, never signal


@dataclass(frozen=True)
class LowRank:
    """A low-rank update, `delta = B @ A`; LoRA's scaling is folded into B.

    `*`: no axis for one update, `[task]` for the stack that a merge method receives. A stack of
    unequal ranks is padded with zeros, and `ranks` keeps the true rank of every task: padding is
    never seen by `unstack` and `concat`.
    """

    A: Tensor  # [*, rank, in]
    B: Tensor  # [*, out, rank]
    ranks: tuple[int, ...] = ()  # of a stack: the true rank of every task

    def __post_init__(self) -> None:
        if self.A.shape[-2] != self.B.shape[-1] or self.A.shape[:-2] != self.B.shape[:-2]:
            raise ValueError(
                f"A {list(self.A.shape)} and B {list(self.B.shape)} do not share a rank: "
                "expected A [*, rank, in] and B [*, out, rank]"
            )
        if self.A.dim() == 3 and not self.ranks:
            object.__setattr__(self, "ranks", (self.rank,) * len(self.A))

    @property
    def rank(self) -> int:
        return self.A.shape[-2]

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)` of the delta."""
        return self.B.shape[-2], self.A.shape[-1]

    @property
    def delta(self) -> Tensor:
        """The dense delta `[*, out, in]`."""
        return self.B @ self.A

    def __len__(self) -> int:
        """Number of tasks of a stack."""
        return len(self.ranks)

    def __mul__(self, scale: float) -> LowRank:
        return LowRank(self.A, self.B * scale, self.ranks)

    def to(self, *args, **kwargs) -> LowRank:
        """`torch.Tensor.to` on both factors."""
        return LowRank(self.A.to(*args, **kwargs), self.B.to(*args, **kwargs), self.ranks)

    def unstack(self) -> list[LowRank]:
        """The tasks' updates at their true ranks."""
        return [LowRank(A[:r], B[:, :r]) for A, B, r in zip(self.A, self.B, self.ranks)]

    def concat(self) -> LowRank:
        """The sum of the tasks' deltas as one update of rank `R`: `[B_1 … B_T] @ [A_1; …; A_T]`."""
        tasks = self.unstack()
        return LowRank(torch.cat([u.A for u in tasks]), torch.cat([u.B for u in tasks], dim=1))

    @property
    def blocks(self) -> list[slice]:
        """Where each task's rank-1 units lie on the `R` axis of `concat()`."""
        ends = torch.tensor((0, *self.ranks)).cumsum(0).tolist()
        return [slice(start, end) for start, end in pairwise(ends)]


Update = LowRank | Tensor  # a Tensor is a dense delta, [*, out, in]


def stack(updates: Sequence[LowRank]) -> LowRank:
    """Tasks' updates `[rank_t, in]`, `[out, rank_t]` as one stack, zero-padded to the largest rank.

    Raises:
        ValueError: the deltas do not share one shape.
    """
    shapes = {u.shape for u in updates}
    if len(shapes) != 1:
        raise ValueError(f"updates of one module must share one shape (out, in), got {shapes}")
    ranks = tuple(u.rank for u in updates)
    top = max(ranks)
    A = [torch.nn.functional.pad(u.A, (0, 0, 0, top - u.rank)) for u in updates]
    B = [torch.nn.functional.pad(u.B, (0, top - u.rank)) for u in updates]
    return LowRank(torch.stack(A), torch.stack(B), ranks)


class SVD(NamedTuple):
    """Thin singular value decomposition at the numerical rank."""

    U: Tensor  # [out, rank]
    S: Tensor  # [rank]
    Vh: Tensor  # [rank, in]


def qr(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Thin QR of `columns [width, R]` in float64; R need not be triangular."""
    X, T, R = orthonormal(columns)
    return X @ T, R


def orthonormal(columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`X [width, k]`, `T [k, k]`, `R [k, R]`: `X @ T` is orthonormal, `X @ T @ R` the columns.

    A caller that goes on with `X @ (T @ small)` saves a pass over the width. One Cholesky of the
    gram where it is well conditioned, else two (as accurate as Householder: Yamamoto et al., ETNA
    2015), else Householder.
    """
    X = columns.double()
    if X.shape[0] > X.shape[1] > 0:
        gram = X.mT @ X
        L, failed = torch.linalg.cholesky_ex(gram)
        if not failed and L.isfinite().all():
            values = torch.linalg.eigvalsh(gram)
            if values[-1] < 100 * values[0]:  # the digits that the gram's condition costs
                return X, _inverse(L).mT, L.mT
            Q = torch.linalg.solve_triangular(L, X.mT, upper=False).mT
            gram = Q.mT @ Q
            if (gram - torch.eye(len(gram)).to(gram)).norm() < 0.1:
                again = torch.linalg.cholesky(gram)
                return Q, _inverse(again).mT, (L @ again).mT
    Q, R = torch.linalg.qr(X)
    return Q, torch.eye(Q.shape[1]).to(Q), R


def _inverse(L: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(L, torch.eye(len(L)).to(L), upper=False)


def svd(update: Update, cut: float = RANK_CUT) -> SVD:
    """SVD of one delta, computed in float64, without null directions.

    A low-rank update costs two QRs and the SVD of an `R x R` core. Singular values at or below
    `cut` times the largest are dropped: their vectors are arbitrary and would let rounding noise
    into any spectral rule.
    """
    if isinstance(update, LowRank):
        X_B, T_B, R_B = orthonormal(update.B)
        X_A, T_A, R_A = orthonormal(update.A.mT)
        U, S, Vh = svd(R_B @ R_A.mT, cut)
        return SVD(X_B @ (T_B @ U), S, (Vh @ T_A.mT) @ X_A.mT)
    U, S, Vh = torch.linalg.svd(update.double(), full_matrices=False)
    keep = S > cut * S.max() if S.numel() else S.bool()
    return SVD(U[:, keep], S[keep], Vh[keep])


def basis(columns: Tensor, cut: float = RANK_CUT) -> Tensor:
    """Left singular vectors `[width, rank]` of `columns [width, R]` at its numerical rank."""
    return frame(columns, cut)[0]


def frame(columns: Tensor, cut: float = RANK_CUT) -> tuple[Tensor, Tensor]:
    """`basis(columns)` and the coordinates of `columns` in it, `[rank, R]`, float64."""
    X, T, R = orthonormal(columns)
    U = svd(R, cut).U
    return X @ (T @ U), U.mT @ R


class Cores(NamedTuple):
    """Coordinates in which every task's delta is a small matrix: `delta_t = U @ core_t @ V.T`."""

    U: Tensor  # [out, p], orthonormal columns
    core: Tensor  # [task, p, q]
    V: Tensor  # [in, q], orthonormal columns

    def lift(self, core: Tensor) -> LowRank:
        """A merged core `[*, p, q]` back as an update of rank `min(p, q)`."""
        if core.shape[-2] <= core.shape[-1]:
            return LowRank(core @ self.V.mT, self.U.expand(*core.shape[:-2], *self.U.shape))
        return LowRank(self.V.mT.expand(*core.shape[:-2], *self.V.mT.shape), self.U @ core)


def cores(updates: LowRank, cut: float = RANK_CUT) -> Cores:
    """Exact cores of a stack in the singular bases of its stacked factors, float64.

    The bases are cut at the numerical rank, so that adapters that share or overlap in A or B (one
    frozen A, duplicates, an untrained B) leave no null direction in the core.
    """
    together = updates.concat()
    U, left = frame(together.B, cut)
    V, right = frame(together.A.mT, cut)
    core = [left[:, block] @ right[:, block].mT for block in updates.blocks]
    return Cores(U, torch.stack(core), V)


def balanced(update: Update, cut: float = RANK_CUT) -> LowRank:
    """The same delta with `B = U sqrt(S)`, `A = sqrt(S) Vh`: canonical, and safe to round."""
    U, S, Vh = svd(update, cut)
    return LowRank(S.sqrt()[:, None] * Vh, U * S.sqrt())


def truncate(update: Update, rank: int) -> tuple[LowRank, float]:
    """The nearest update of at most `rank` in Frobenius norm, and its relative error."""
    U, S, Vh = svd(update)
    norm = S.norm()
    error = (S[rank:].norm() / norm).item() if norm > 0 else 0.0
    root = S[:rank].sqrt()
    return LowRank(root[:, None] * Vh[:rank], U[:, :rank] * root), error
