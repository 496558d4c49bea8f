"""How `A` starts where no row has been seen; see `functions` for the contract."""

from math import sqrt

import torch
from torch import Generator, Tensor


def gaussian(width: int, rank: int, /, *, generator: Generator) -> Tensor:
    """Normal entries of standard deviation `1 / rank`, as PEFT's `gaussian`; OSRM's baseline."""
    return torch.randn(rank, width, generator=generator) / rank


def kaiming(width: int, rank: int, /, *, generator: Generator) -> Tensor:
    """Uniform entries in `±1 / sqrt(width)`: `kaiming_uniform_(a=sqrt(5))`, PEFT's default."""
    return (2 * torch.rand(rank, width, generator=generator) - 1) / sqrt(width)


def orthonormal(width: int, rank: int, /, *, generator: Generator) -> Tensor:
    """Orthonormal rows, uniformly distributed."""
    check_rank(width, rank)
    return random_rows(width, rank, generator).float()


def last_coordinates(width: int, rank: int, /, *, generator: Generator) -> Tensor:
    """The last `rank` coordinate axes: nearly what the released code's SVD returns on a CPU."""
    check_rank(width, rank)
    return torch.eye(width)[-rank:]


def random_rows(width: int, rank: int, generator: Generator) -> Tensor:
    """Haar-distributed orthonormal rows `[rank, width]`, float64."""
    return orthonormal_rows(normal(width, rank, generator))


def normal(width: int, rank: int, generator: Generator) -> Tensor:
    """Standard normal columns `[width, rank]`, float64."""
    return torch.randn(width, rank, generator=generator, dtype=torch.float64)


def orthonormal_rows(columns: Tensor) -> Tensor:
    """Columns `[width, rank]` made orthonormal in their order, as rows `[rank, width]`."""
    Q, R = torch.linalg.qr(columns)
    return (Q * R.diagonal().sign()).mT.contiguous()


def check_rank(width: int, rank: int) -> None:
    if rank > width:
        raise ValueError(f"no {rank} orthogonal directions in {width} dimensions: lower the rank")
