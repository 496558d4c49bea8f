"""Extreme eigenpairs of a large positive semi-definite matrix, without all the others.

A block Krylov method in float64: multiply a few vectors by the matrix (for the largest pairs) or
solve with its Cholesky factor (for the smallest), keep everything orthonormal, and take the Ritz
pairs of the space so far. It stops when the residuals say that the subspace is right, and gives the
problem to `torch.linalg.eigh` when they do not say so in time. The start is a constant, so results
repeat; every eigenvector has a positive entry of largest magnitude.
"""

from collections.abc import Callable

import torch
from torch import Tensor

ANGLE = 5e-7  # stop when the subspace is right up to this sine (Davis-Kahan, by its residual)
GAP = 1e-2  # neighbouring eigenvalues that differ by less leave the subspace a matter of taste:
DETAIL = 3e-4  # then stop when the sum of the eigenvalues is right up to this
ENERGY = 5e-3  # accept what did not converge when their sum is right up to this
STEPS = 20
KEEP = 8  # Ritz vectors, times count, in which the matrix itself has the last word
PANEL = 256  # rows of the factor that a solve handles at once
SMALL = 80  # below this width, times the block, all eigenpairs are cheap enough


def smallest(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` smallest eigenvalues `[count]`, ascending, and their vectors `[n, count]`.

    Float64. Where eigenvalues coincide, also at zero, the vectors are some basis of their space.

    Args:
        matrix: `[n, n]`, symmetric positive semi-definite up to rounding.
        count: at most n.
    """
    G = matrix.double()
    factor, shift = (None, 0.0) if _is_small(G, count) else _cholesky(G, rounding(matrix))
    if factor is None:
        return _eigh(G, count, largest=False)
    inverse, vectors, missing = _krylov(
        _solver(factor), G, count, lambda values: 1 / values - shift
    )
    GX = G @ vectors
    values, Y = torch.linalg.eigh(vectors.mT @ GX)
    # a Ritz value of the inverse is a harmonic mean, below the energy that the vector really has
    missing += (values[:count].sum() - (1 / inverse - shift).sum()).abs().item()
    if missing > ENERGY * values[:count].sum().abs() + rounding(G):
        return _eigh(G, count, largest=False)
    return values[:count], signed(vectors @ Y[:, :count])


def largest(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues `[count]`, descending, and their vectors `[n, count]`."""
    G = matrix.double()
    if _is_small(G, count):
        return _eigh(G, count, largest=True)
    values, vectors, missing = _krylov(G.matmul, G, count, lambda values: values)
    if missing > ENERGY * values.sum() + rounding(G):
        return _eigh(G, count, largest=True)
    return values, signed(vectors[:, :count])


def nullity(matrix: Tensor) -> int:
    """Number of eigenvalues that rounding cannot tell from zero."""
    return int((torch.linalg.eigvalsh(matrix.double()) <= rounding(matrix)).sum())


def rounding(matrix: Tensor, dtype: torch.dtype | None = None) -> float:
    """Up to this size an eigenvalue may be the rounding of a zero.

    The entries' own rounding, in the `dtype` that they were stored in, moves eigenvalues like a
    random matrix; the solver's moves them by a multiple of the norm.
    """
    n, eps = len(matrix), torch.finfo(dtype or matrix.dtype).eps
    stored = 2 * n**0.5 * eps * matrix.diagonal().abs().max().item()
    return stored + 100 * torch.finfo(torch.float64).eps * torch.linalg.matrix_norm(matrix).item()


def signed(vectors: Tensor) -> Tensor:
    """The same directions `[n, count]`, each with a positive entry of largest magnitude."""
    top = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return torch.where(top < 0, -vectors, vectors)


def _krylov(
    apply: Callable[[Tensor], Tensor],
    like: Tensor,
    count: int,
    energy: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, float]:
    """The leading Ritz pairs of `apply` in its block Krylov space.

    Returns:
        The values `[count]`, vectors `[n, up to KEEP * count]`, and an estimate of how far the sum
        of the values' `energy` still is from its limit.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(like), _block(count), generator=generator, dtype=like.dtype)
    block, _ = torch.linalg.qr(start.to(like.device))
    V, H = block, block.new_empty(0, 0)  # H = V^T apply(V)
    sums = []
    for _ in range(STEPS):
        image = apply(block)
        cross = V.mT @ image
        H = torch.cat([torch.cat([H, cross[: len(H)].mT]), cross], 1)
        values, Y = torch.linalg.eigh(H)
        values, Y = values.flip(0), Y.flip(1)
        sums.append(energy(values[:count]).sum().item())
        block, R = _orthogonal(image - V @ cross, V)
        residual = (R @ Y[-block.shape[1] :, :count]).norm()
        gap, missing = values[count - 1] - values[count], _remainder(sums)
        if residual <= ANGLE * gap:
            missing = 0.0
            break
        if gap < GAP * values[count - 1] and missing <= DETAIL * abs(sums[-1]):
            break
        V = torch.cat([V, block], 1)
    return values[:count], V[:, : len(Y)] @ Y[:, : KEEP * count], missing


def _orthogonal(block: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """`block` as `Q R` with `Q` orthogonal to `V`, also when `block` is rounding noise."""
    Q, R = torch.linalg.qr(block)
    for _ in range(2):
        Q, again = torch.linalg.qr(Q - V @ (V.mT @ Q))
        R = again @ R
    return Q, R


def _remainder(sums: list[float]) -> float:
    """How far a sequence that approaches its limit at a geometric rate still has to go."""
    if len(sums) < 3:
        return float("inf")
    before, last = abs(sums[-3] - sums[-2]), abs(sums[-2] - sums[-1])
    if last <= 1e-9 * abs(sums[-1]):
        return last  # at its limit, where the rate is rounding
    return last * last / (before - last) if last < before else float("inf")


def _cholesky(G: Tensor, shift: float) -> tuple[Tensor | None, float]:
    """Factor of `G + shift`, with a shift that is raised until there is one."""
    for _ in range(4):
        shifted = G.clone()
        shifted.diagonal().add_(shift)
        L, failed = torch.linalg.cholesky_ex(shifted)
        if not failed:
            return L, shift
        shift *= 100
    return None, shift


def _solver(L: Tensor) -> Callable[[Tensor], Tensor]:
    """`X -> (L L^T)^-1 X` for few columns, by matrix products with panels of `L`.

    Several times faster than a triangular solve, which reads `L` badly when there are few columns.
    """
    panels = [slice(i, min(i + PANEL, len(L))) for i in range(0, len(L), PANEL)]
    inverses = [torch.linalg.inv(L[p, p].tril()) for p in panels]

    def solve(X: Tensor) -> Tensor:
        X = X.clone()
        for p, inverse in zip(panels, inverses):
            X[p] = inverse @ (X[p] - L[p, : p.start] @ X[: p.start])
        for p, inverse in zip(reversed(panels), reversed(inverses)):
            X[p] = inverse.mT @ (X[p] - L[p.stop :, p].mT @ X[p.stop :])
        return X

    return solve


def _eigh(G: Tensor, count: int, *, largest: bool) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(G)
    if largest:
        values, vectors = values.flip(0), vectors.flip(1)
    return values[:count], signed(vectors[:, :count])


def _block(count: int) -> int:
    return max(2 * count, 12)


def _is_small(G: Tensor, count: int) -> bool:
    return len(G) < SMALL * _block(count)
