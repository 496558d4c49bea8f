"""Sums over the rows of all batches and all processes."""

import torch
import torch.distributed as dist
from scipy.linalg.blas import dsyrk
from torch import Tensor, nn


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
    """The symmetric matrix of a lower triangle, in place."""
    total.tril_()
    return total.add_(total.tril(-1).mT)


def reduced(total: Tensor, count: int, model: nn.Module) -> Tensor:
    """`total / count`, both added over the processes if `torch.distributed` is initialised.

    Every process must then have made the same call with its own share of the batches.
    """
    if dist.is_available() and dist.is_initialized():
        home = next(model.parameters()).device  # NCCL reduces on the accelerator only
        total, counted = total.to(home), torch.tensor(float(count), device=home)
        dist.all_reduce(total)
        dist.all_reduce(counted)
        return total.cpu() / counted.item()
    return (total / count).cpu()
