"""Rules on single entries: trim, elect a sign, merge what agrees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from operator import add

import torch
from torch import Tensor

from osrm_exp.lora import Dense
from osrm_exp.merging.selection import trim, trim_threshold
from osrm_exp.merging.spaces import Merged, Stacks, in_space
from osrm_exp.merging.streams import Stream, blockwise, changed, per_group, streams


@in_space
def ties(
    stacks: Stacks,
    *,
    density: float,
    granularity: str,
    counting: str,
    total_parameters: int | None,
    merge: str,
    scaling: float,
) -> Merged:
    """TIES: trim every task to its largest entries, elect a sign, merge the entries that agree.

    Yadav et al., NeurIPS 2023, arXiv 2306.01708, algorithm 1; released code `merge_methods`. In the
    space `knots` this is KnOTS-TIES, in `core` the TIES of Core Space.

    Args:
        stacks: `[task, m, n]` by module, in the space's coordinates.
        density: share of a task's entries that is kept, in (0, 1].
        granularity: whether thresholds and the majority sign are found over all modules (`global`)
            or in each (`tensor`).
        counting: how many entries that is, see `trim_threshold`.
        total_parameters: see `trim_threshold`.
        merge: what becomes of agreeing entries, their `mean` or their `sum`.
        scaling: factor of the result.
    """
    return ties_of(
        streams(stacks), density, granularity, counting, total_parameters, merge, scaling
    )


def ties_of(
    parts: dict[str, Stream],
    density: float,
    granularity: str,
    counting: str,
    total_parameters: int | None,
    merge: str,
    scaling: float,
) -> Merged:
    """`ties` on stacks that are read as streams."""
    if merge not in ("mean", "sum"):
        raise ValueError(f"merge {merge!r} is unknown: choose mean or sum")
    trimmed, elected = _election(parts, density, granularity, counting, total_parameters)

    def disjoint(module: str, block: Tensor) -> Tensor:
        agreeing, sign = elected(module, block)
        total = agreeing.sum(0).mul_(sign)
        return total.div_(voters(agreeing).clamp_(min=1)) if merge == "mean" else total

    return blockwise(trimmed, lambda module, block: disjoint(module, block).mul_(scaling))


def ties_tasks(
    updates: Stacks,
    /,
    *,
    density: float,
    granularity: str,
    counting: str,
    total_parameters: int | None,
) -> Mapping[str, Dense]:
    """What TIES leaves of every task before it is merged: trimmed, without entries that disagree.

    AdaMerging++ scales these, `[task, out, in]`. Options as in `ties`, whose `merge: sum` is their
    sum.
    """
    trimmed, elected = _election(streams(updates), density, granularity, counting, total_parameters)

    def kept(module: str, block: Tensor) -> Tensor:
        agreeing, sign = elected(module, block)
        return agreeing.mul_(sign)

    return blockwise(trimmed, kept)


def _election(
    parts: dict[str, Stream],
    density: float,
    granularity: str,
    counting: str,
    total_parameters: int | None,
) -> tuple[dict[str, Stream], Callable[[str, Tensor], tuple[Tensor, Tensor]]]:
    """Trimmed streams; of a block of theirs the agreeing magnitudes `[task, *]` and the sign."""

    def measure(group: list[Stream]) -> Tensor:
        return trim_threshold(group, density, counting, total_parameters)

    threshold = per_group(parts, granularity, measure)
    trimmed = changed(parts, lambda module, block: trim(block, threshold(module)))
    majority = per_group(trimmed, granularity, _majority)

    def elected(module: str, block: Tensor) -> tuple[Tensor, Tensor]:
        total = block.sum(0)
        sign = plus_or_minus(total)
        drawn = (total == 0) & (block.amax(0) > 0)
        if drawn.any():  # nearly never, so the majority is counted only where a draw asks for it
            sign = torch.where(drawn, majority(module), sign)
        return block.mul_(sign).clamp_(min=0), sign

    return trimmed, elected


def plus_or_minus(total: Tensor) -> Tensor:
    """The sign of every entry, plus for zero."""
    return torch.ones_like(total).copysign_(total + 0.0)  # + 0.0 makes a negative zero positive


def voters(agreeing: Tensor) -> Tensor:
    """How many tasks hold a positive entry; overwrites `agreeing [task, *]`, which is >= 0."""
    return agreeing.sign_().sum(0)


def _majority(group: list[Stream]) -> Tensor:
    """The sign of most entries of the sum; TIES' code gives it to entries that sum to zero."""
    blocks = (block for part in group for block in part.blocks())
    return reduce(add, (block.sum(0).sign_().sum(dtype=torch.float64) for block in blocks)).sign()


@in_space
def magmax(stacks: Stacks, *, scaling: float) -> Merged:
    """Of every entry the largest in magnitude over the tasks. Marczak et al., arXiv 2407.06322."""

    def largest(_: str, block: Tensor) -> Tensor:
        high, low = block.amax(0), block.amin(0)
        return torch.where(high >= -low, high, low).mul_(scaling)

    return blockwise(streams(stacks), largest)
