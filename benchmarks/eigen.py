"""`osrm_exp.inits.eigen.smallest` beside SciPy's and torch's solvers, in turn, in one run.

    python benchmarks/eigen.py --widths 384 1024 4096

Spectra of known eigenvalues: `gap`, `decaying` (as activations' are, without any gap to speak
of), `flat` (random features), `zero` (decaying, but for one that is zero). `subset` is SciPy's
`eigh` for a part of the pairs; `eigsh` (shift-invert) and `lobpcg` are given the Cholesky factor
that ours makes. Processor seconds of the fastest of some runs; `excess` is the energy above the
minimum.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch
from scipy.sparse.linalg import LinearOperator, eigsh, lobpcg
from torch import Tensor

from osrm_exp.inits import eigen

RANK, STEPS = 8, 40


def spectra(width: int, rank: int) -> dict[str, Tensor]:
    """Ascending eigenvalues `[width]`."""
    share = torch.arange(width, dtype=torch.float64) / width
    gap = torch.cat([torch.logspace(-6, -5, rank, dtype=torch.float64), 1e-4 + share[rank:]])
    return {
        "gap": gap,
        "decaying": torch.exp(16 * (share - 1)),
        "flat": torch.sin(torch.pi / 2 * (share + 0.2) / 1.2),
        "zero": torch.cat([torch.zeros(1, dtype=torch.float64), torch.exp(9 * (share[1:] - 1))]),
    }


def rotated(values: Tensor, reflections: int = 8) -> tuple[Tensor, Tensor]:
    """A dense matrix with these eigenvalues, and its eigenvectors in their order."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.eye(len(values), dtype=torch.float64)
    for _ in range(reflections):
        v = torch.randn(len(values), generator=generator, dtype=torch.float64)
        v /= v.norm()
        vectors -= 2 * torch.outer(v, v @ vectors)
    return (vectors * values) @ vectors.mT, vectors


def inverse(G: np.ndarray) -> LinearOperator:
    """Solves with the matrix, shifted by its rounding."""
    shift = eigen.rounding(torch.from_numpy(G))
    factor = scipy.linalg.cho_factor(G + shift * np.eye(len(G)), lower=True, check_finite=False)

    def solve(X: np.ndarray) -> np.ndarray:
        return scipy.linalg.cho_solve(factor, X, check_finite=False)

    return LinearOperator(G.shape, matvec=solve, matmat=solve, dtype=G.dtype)


def solvers(G: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Each gives the vectors `[width, RANK]` of the smallest eigenvalues."""
    dense, draws = G.numpy(), np.random.default_rng(0)
    start = draws.standard_normal((len(G), RANK))

    def by_lobpcg() -> Tensor:
        with warnings.catch_warnings(action="ignore"):  # that it did not reach the tolerance
            how = {"M": inverse(dense), "largest": False, "tol": 1e-9, "maxiter": STEPS}
            return torch.from_numpy(lobpcg(dense, start.copy(), **how)[1].copy())

    def by_eigsh() -> Tensor:
        how = {"sigma": 0, "OPinv": inverse(dense), "v0": start[:, 0]}
        return torch.from_numpy(eigsh(dense, RANK, **how)[1].copy())

    return {
        "ours": lambda: eigen.smallest(G, RANK)[1],
        "subset": lambda: torch.from_numpy(
            scipy.linalg.eigh(dense, subset_by_index=[0, RANK - 1])[1]
        ),
        "eigsh": by_eigsh,
        "lobpcg": by_lobpcg,
        **({"torch": lambda: torch.linalg.eigh(G)[1][:, :RANK]} if len(G) < 2000 else {}),
    }


def fastest(runs: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, tuple]:
    """Processor seconds of each one's fastest run, and what it gave; they take turns."""
    found: dict[str, tuple] = {}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            vectors = run()
            seconds = time.process_time() - start
            found[name] = min(
                found.get(name, (seconds, vectors)), (seconds, vectors), key=lambda x: x[0]
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 1024, 4096])
    options = parser.parse_args()
    torch.set_num_threads(1)  # of SciPy's BLAS: OMP_NUM_THREADS=1
    print(f"rank {RANK}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    print(f"{'width':>6} {'spectrum':10}{'solver':8}{'seconds':>9}{'ours/it':>9}{'excess':>10}")
    for width in options.widths:
        for name, values in spectra(width, RANK).items():
            G, _ = rotated(values)
            found = fastest(solvers((G + G.mT) / 2), 5 if width < 2000 else 2)
            for solver, (seconds, vectors) in found.items():
                A, _ = torch.linalg.qr(vectors.double())
                excess = (A * (G @ A)).sum() / values[:RANK].sum() - 1
                row = f"{width:6} {name:10}{solver:8}{seconds:9.3f}"
                print(f"{row}{found['ours'][0] / seconds:9.2f}{excess:10.0e}", flush=True)


if __name__ == "__main__":
    main()
