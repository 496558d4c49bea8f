"""Sums over the rows of all batches and all processes."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


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
    return total / count
