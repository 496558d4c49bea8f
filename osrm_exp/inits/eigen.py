"""Extreme eigenpairs of a positive semi-definite matrix, without all the others, in float64.

SciPy's solvers, on the CPU. Up to a width of `WIDE` the tridiagonal one, which computes no more
than the pairs asked for; above it ARPACK, which for the smallest pairs is given the inverse by a
Cholesky factor. What it does not find soon goes to the first one. Starts are constant, so results
repeat; every eigenvector has a positive entry of largest magnitude.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WIDE = 1536
PRECISE = 1e-6  # of a residual, beside its eigenvalue: energies are right up to its square
RESTARTS = 30


def smallest(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` smallest eigenvalues `[count]`, ascending, and their vectors `[n, count]`.

    Float64. Where eigenvalues coincide, also at zero, the vectors are some basis of their space.

    Args:
        matrix: `[n, n]`, symmetric positive semi-definite up to rounding.
        count: at most n.
    """
    G = matrix.double().cpu()
    found = _inverted(G.numpy(), count, rounding(matrix)) if _is_wide(G, count) else None
    return _tensors(matrix, *(found or _part(G.numpy(), 0, count)))


def largest(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues `[count]`, descending, and their vectors `[n, count]`."""
    G, n = matrix.double().cpu(), len(matrix)
    found = _arpack(G.numpy(), count, which="LA") if _is_wide(G, count) else None
    values, vectors = found or _part(G.numpy(), n - count, n)
    return _tensors(matrix, values[::-1], vectors[:, ::-1])


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


def _is_wide(G: Tensor, count: int) -> bool:
    return 0 < count and len(G) >= WIDE and len(G) > 4 * count + 32  # a Krylov space has room


def _tensors(like: Tensor, values: np.ndarray, vectors: np.ndarray) -> tuple[Tensor, Tensor]:
    found = [torch.from_numpy(array.copy()).to(like.device) for array in (values, vectors)]
    return found[0], signed(found[1])


def _part(G: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs from `start` to `stop`, ascending; none at all is a part too."""
    from scipy.linalg import eigh  # late, as below: whoever only merges does not wait for it

    if start == stop:
        return np.empty(0), np.empty((len(G), 0))
    return eigh(G, subset_by_index=[start, stop - 1])


def _inverted(G: np.ndarray, count: int, shift: float) -> tuple[np.ndarray, np.ndarray] | None:
    """The smallest pairs by solving with `G + shift`, which is raised until it has a factor."""
    from scipy.linalg import LinAlgError, cho_factor, cho_solve
    from scipy.sparse.linalg import LinearOperator

    for _ in range(4):
        shifted = G.copy()
        shifted.flat[:: len(G) + 1] += shift
        try:
            factor = cho_factor(shifted, lower=True, overwrite_a=True, check_finite=False)
            break
        except LinAlgError:
            shift *= 100
    else:
        return None

    def solve(x: np.ndarray) -> np.ndarray:
        return cho_solve(factor, x, check_finite=False)

    return _arpack(G, count, sigma=-shift, OPinv=LinearOperator(G.shape, solve, dtype=G.dtype))


def _arpack(G: np.ndarray, count: int, **how: object) -> tuple[np.ndarray, np.ndarray] | None:
    """Eigenvalues, ascending, and orthonormal vectors; None where they do not converge soon."""
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    start = np.random.default_rng(0).standard_normal(len(G))
    room = 2 * count + 16
    try:
        _, vectors = eigsh(G, count, v0=start, ncv=room, tol=PRECISE, maxiter=RESTARTS, **how)
    except ArpackNoConvergence:
        return None
    basis, _ = np.linalg.qr(vectors)
    values, inside = np.linalg.eigh(basis.T @ G @ basis)
    return values, basis @ inside
