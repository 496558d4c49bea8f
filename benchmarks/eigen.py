"""`osrm_exp.inits.eigen.smallest` beside `torch.linalg.eigh`, timed one after the other.

    python benchmarks/eigen.py --width 4096 --threads 2

Three spectra of known eigenvalues: `gap`, `decaying` (as activations' are, without any gap to
speak of) and `flat` (random features). `excess` is the energy above the minimum, `angle` the sine
of the largest angle to the true subspace. The float32 `eigh` is not an alternative: where the
spectrum decays, the small eigenvalues are below its rounding.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from osrm_exp.inits import eigen


def spectra(width: int, rank: int) -> dict[str, Tensor]:
    """Ascending eigenvalues `[width]`."""
    share = torch.arange(width, dtype=torch.float64) / width
    gap = torch.cat([torch.logspace(-6, -5, rank, dtype=torch.float64), 1e-4 + share[rank:]])
    return {
        "gap": gap,
        "decaying": torch.exp(16 * (share - 1)),
        "flat": torch.sin(torch.pi / 2 * (share + 0.2) / 1.2),
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


def timed(function: Callable[[], tuple[Tensor, Tensor]]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    _, vectors = function()
    return time.perf_counter() - start, vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    rank = options.rank
    torch.set_num_threads(options.threads)
    eigen.smallest(torch.eye(2 * options.width // 3, dtype=torch.float64), rank)  # warm up
    print(f"width {options.width}, rank {rank}, {options.threads} threads")
    print(f"{'spectrum':10}{'solver':16}{'seconds':>9}{'ratio':>7}{'excess':>10}{'angle':>9}")
    for name, values in spectra(options.width, rank).items():
        G, truth = rotated(values)
        solvers = {
            "smallest": lambda G=G: eigen.smallest(G, rank),
            "eigh float64": lambda G=G: torch.linalg.eigh(G),
            "eigh float32": lambda G=G: torch.linalg.eigh(G.float()),
        }
        ours = None
        for solver, solve in solvers.items():
            seconds, vectors = timed(solve)
            ours = ours or seconds
            A = vectors[:, :rank].double()
            excess = (A * (G @ A)).sum() / values[:rank].sum() - 1
            angle = torch.linalg.matrix_norm(A - truth[:, :rank] @ (truth[:, :rank].mT @ A), 2)
            row = f"{name:10}{solver:16}{seconds:9.2f}{seconds / ours:7.1f}"
            print(f"{row}{excess:10.1e}{angle:9.1e}", flush=True)


if __name__ == "__main__":
    main()
