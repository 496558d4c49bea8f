"""Sums over the rows of all batches and all processes."""

import torch
import torch.distributed as dist
from scipy.linalg.blas import dsyrk
from torch import Tensor, nn

TILE = 128  # rows of a triangle that are turned at once


def add_rows(total: Tensor | None, rows: Tensor) -> Tensor:
    """`total + sum_row x`, `[in]`."""
    found = rows.sum(0)
    return found if total is None else total.add_(found)


def add_squares(total: Tensor | None, rows: Tensor) -> Tensor:
    """`total + rows^T rows`, `[in, in]`, of which the lower triangle alone is kept: see `mirrored`.

    Half of the products of a full one, added in place. `rows [row, in]` are float64.
    """
    if total is None:
        total = rows.new_zeros(rows.shape[1], rows.shape[1])
    if not rows.is_cpu:
        return total.addmm_(rows.mT, rows)  # whole: it stays there until the last batch
    if len(rows):  # BLAS counts columns first: what is our lower triangle is its upper one
        dsyrk(1, rows.contiguous().numpy().T, beta=1, c=total.numpy().T, overwrite_c=1)
    return total


def mirrored(total: Tensor) -> Tensor:
    """The symmetric matrix of a lower triangle, in place, tile by tile: what is turned is read from
    the cache."""
    for start in range(0, len(total), TILE):
        here, below = slice(start, start + TILE), slice(start + TILE, None)
        total[here, below] = total[below, here].mT
        corner = total[here, here]
        corner.copy_(corner.tril() + corner.tril(-1).mT)
    return total


def reduced(total: Tensor, count: int, model: nn.Module) -> Tensor:
    """`total / count` in the place of `total`, both added over the processes if
    `torch.distributed` is initialised.

    Every process must then have made the same call with its own share of the batches.
    """
    if dist.is_available() and dist.is_initialized():
        home = next(model.parameters()).device  # NCCL reduces on the accelerator only
        total, counted = total.to(home), torch.tensor(float(count), device=home)
        dist.all_reduce(total)
        dist.all_reduce(counted)
        return total.cpu() / counted.item()
    return total.div_(count).cpu()
