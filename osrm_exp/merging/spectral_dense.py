"""Published dense forms of the spectral merges, which are ill-posed on LoRA adapters.

They take the SVD of `[out, in]` matrices of rank `R` and use all `min(out, in)` triplets. Those
beyond `R` are whatever the library completes the basis with: noise of 1e-13 on the factors changes
the result by its own size, and one machine's number is not another's. They exist to reproduce
published tables, and where `R >= min(out, in)` they equal the forms of `spectral` and `opcm`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from osrm_exp.lazy import Lazy
from osrm_exp.lora import Dense, LowRank, Update, svd
from osrm_exp.merging.opcm import in_turn
from osrm_exp.merging.spectral import common_and_own, filled
from osrm_exp.merging.triplets import decorrelated, flat, head, triplets


def iso_c_dense(updates: Mapping[str, LowRank], /, *, scaling: float) -> Mapping[str, Update]:
    """`spectral.iso_c` with the mean over `min(out, in)` singular values, as released."""
    return _each(updates, lambda stack: scaling * flat(svd(stack.total().delta, cut=0)).delta)


def iso_cts_dense(
    updates: Mapping[str, LowRank], /, *, common_space_fraction: float, scaling: float
) -> Mapping[str, Update]:
    """`spectral.iso_cts` that fills `min(out, in)` directions, as released."""

    def share(size: int, tasks: int) -> tuple[int, int]:
        return filled(size, tasks, common_space_fraction)

    return _each(updates, lambda stack: scaling * common_and_own(_numbers(stack), share, cut=0))


def tsv_dense(updates: Mapping[str, LowRank], /, *, scaling: float) -> Mapping[str, Update]:
    """`spectral.tsv` of `min(out, in) / T` triplets a task, whatever its rank, as released."""

    def merge(stack: LowRank) -> Tensor:
        count = min(stack.shape) // len(stack)
        parts = [head(part, count) for part in triplets(_numbers(stack), cut=0)]
        return scaling * decorrelated(parts, cut=0)

    return _each(updates, merge)


def opcm_dense(
    updates: Mapping[str, LowRank], /, *, alpha: float, seed: int | None
) -> Mapping[str, Update]:
    """`opcm` that clears the whole diagonal, null directions of the merge included, as released.

    All modules' dense deltas are in memory at once: every step rescales the whole model.
    """
    tasks = {module: _numbers(stack.to(torch.float64)) for module, stack in updates.items()}
    merged = in_turn(tasks, alpha, seed, cut=0)
    return {module: Dense(merged[module].to(stack.dtype)) for module, stack in updates.items()}


def _numbers(stack: LowRank) -> list[Dense]:
    return Dense(stack.delta).unstack()


def _each(updates: Mapping[str, LowRank], merge: Callable[[LowRank], Tensor]) -> Lazy[Dense]:
    """`merge(stack)` of a module when it is asked for, in float64."""

    def compute(module: str) -> Dense:
        stack = updates[module]
        return Dense(merge(stack.to(torch.float64)).to(stack.dtype))

    return Lazy(updates, compute)
