"""PCB-Merging: parameters compete within a task and between tasks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from osrm_exp.merging.selection import kth_smallest
from osrm_exp.merging.spaces import Merged, Stacks, in_space
from osrm_exp.merging.streams import Stream, blockwise, per_group, streams

HIGHEST = 64  # exponent; with more tasks all scores are scaled down, of which their ratios count
TAIL = 1e-4  # share of magnitudes clamped at either end, fixed in the released code


class _Limits(NamedTuple):
    """Of a group, `[task]` each: clamped magnitudes, and the competition scores that count."""

    smallest: Tensor
    largest: Tensor
    floor: Tensor
    top: Tensor


@in_space
def pcb(stacks: Stacks, *, ratio: float, granularity: str, scaling: float) -> Merged:
    """Weigh every entry by how much it matters to its task and how far the tasks agree on it.

    Du et al., NeurIPS 2024, arXiv 2410.02396, released code `PCB_merge`:
    `beta = exp(T * minmax(|x|)^2) * tanh(x * sum_t x)`, of which the `ratio` largest, scaled to
    `[0, 1]`, are the weights of a mean. Not scale equivariant, and one task is not returned as is.
    """
    parts = streams(stacks)
    limits = per_group(parts, granularity, lambda group: _measure(group, ratio))

    def balance(module: str, block: Tensor) -> Tensor:
        limit = limits(module)
        floor, top = _as(limit.floor, block), _as(limit.top, block)
        score = _score(block, limit.smallest, limit.largest).clamp_(floor, top).sub_(floor)
        score /= torch.where(top > floor, top - floor, 1)
        value = block.sign() * _clamped(block, limit.smallest, limit.largest)
        return (value * score).sum(0) / score.sum(0).clamp_(min=1e-12) * scaling

    return blockwise(parts, balance)


def _measure(group: list[Stream], ratio: float) -> _Limits:
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio {ratio} is no share: choose a number from 0 to 1")
    d = sum(part.numel for part in group)
    magnitudes = [part.map(Tensor.abs_) for part in group]
    smallest = kth_smallest(magnitudes, int(d * TAIL) + 1, least=0.0)
    largest = kth_smallest(magnitudes, max(int(d * (1 - TAIL) - 1), 0) + 1, least=0.0)
    scores = [part.map(lambda block: _score(block, smallest, largest)) for part in group]
    floor = kth_smallest(scores, min(int(d * (1 - ratio)) + 1, d))
    return _Limits(smallest, largest, floor, kth_smallest(scores, d))


def _score(block: Tensor, smallest: Tensor, largest: Tensor) -> Tensor:
    """Balance of competition `beta [task, *]`."""
    low, high = _as(smallest, block), _as(largest, block)
    share = (_clamped(block, smallest, largest) - low) / torch.where(high > low, high - low, 1)
    tasks = len(block)
    exponent = tasks * share.square() - max(0, tasks - HIGHEST)
    return torch.exp(exponent) * torch.tanh(block * block.sum(0))


def _clamped(block: Tensor, smallest: Tensor, largest: Tensor) -> Tensor:
    return block.abs().clamp_(_as(smallest, block), _as(largest, block))


def _as(limit: Tensor, block: Tensor) -> Tensor:
    """A number a task, to be broadcast over `block [task, *]`."""
    return limit.view(-1, *[1] * (block.dim() - 1))
