"""Elementwise rules with a weight a task, as mergekit and PEFT define them: every module alone.

They differ from the papers in what elects a sign (a zero sum elects plus) and what divides a sum.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from osrm_exp.merging.elementwise import plus_or_minus, voters
from osrm_exp.merging.geometry import task_weights
from osrm_exp.merging.selection import kth_smallest, trim, trim_threshold
from osrm_exp.merging.spaces import Merged, Stacks, in_space
from osrm_exp.merging.streams import Stream, blockwise, changed, per_group, streams

Weights = Sequence[float] | None  # one a task, null for 1 each


@in_space
def ties_mergekit(
    stacks: Stacks, *, density: float, weights: Weights, normalize: bool, scaling: float
) -> Merged:
    """TIES as mergekit has it: weighted before the election, divided by the agreeing weights."""
    parts = _trimmed(streams(stacks), density)
    return weighted_sum(parts, weights=weights, elect=True, normalize=normalize, scaling=scaling)


@in_space
def breadcrumbs(
    stacks: Stacks,
    *,
    density: float,
    gamma: float,
    elect: bool,
    weights: Weights,
    normalize: bool,
    scaling: float,
) -> Merged:
    """Drop the `gamma n` largest and the smallest entries of `n` so that `density n` remain; add.

    Davari & Belilovsky, ECCV 2024, arXiv 2312.06795; counting of mergekit's `magnitude_outliers`,
    which keeps nothing where `gamma n < 1` while this function then drops no outlier.

    Args:
        stacks: `[task, m, n]` by module, in the space's coordinates.
        density: share of a task's entries that is kept, in (0, 1].
        gamma: share of the largest entries that is dropped.
        elect: keep only entries that agree with the sign of the weighted sum (`breadcrumbs_ties`).
        weights: one a task, null for 1 each.
        normalize: divides by the sum of the weights that went in.
        scaling: factor of the result.
    """
    parts = streams(stacks)
    limits = per_group(parts, "tensor", lambda group: _crumbs(group, density, gamma))

    def crumbs(module: str, block: Tensor) -> Tensor:
        smallest, largest = limits(module)
        outlying = block.abs() > largest[:, None, None]
        return trim(block, smallest).masked_fill_(outlying, 0)

    blocks = changed(parts, crumbs)
    return weighted_sum(blocks, weights=weights, elect=elect, normalize=normalize, scaling=scaling)


def _crumbs(group: list[Stream], density: float, gamma: float) -> tuple[Tensor, Tensor]:
    """The smallest and the largest magnitude that breadcrumbs keep, `[task]` each."""
    n = group[0].numel
    outliers, kept = int(gamma * n), int(density * n)
    if not 0 < kept <= n or not 0 <= outliers < n:
        raise ValueError(
            f"density {density} and gamma {gamma} keep {kept} and drop {outliers} of {n} entries: "
            "density must be in (0, 1] and gamma in [0, 1)"
        )
    magnitudes = [part.map(Tensor.abs_) for part in group]
    smallest = kth_smallest(magnitudes, max(n - kept - outliers, 0) + 1, least=0.0)
    return smallest, kth_smallest(magnitudes, n - outliers, least=0.0)


@in_space
def peft_dense_ties(
    stacks: Stacks, *, density: float, majority_sign: str, weights: Weights, scaling: float
) -> Merged:
    """PEFT's `ties_svd` before its truncation: signs elected without weights, values summed with
    them, divided by the number of tasks that agree.

    Args:
        stacks: `[task, m, n]` by module, in the space's coordinates.
        density: share of a task's entries that is kept.
        majority_sign: what elects, the `total` of the trimmed values or the `frequency` of signs.
        weights: one a task, null for 1 each.
        scaling: factor of the result.
    """
    if majority_sign not in ("total", "frequency"):
        raise ValueError(f"majority_sign {majority_sign!r} is unknown: choose total or frequency")
    parts = _trimmed(streams(stacks), density)

    def disjoint(_: str, block: Tensor) -> Tensor:
        votes = block if majority_sign == "total" else block.sign()
        sign = plus_or_minus(votes.sum(0))
        agreeing = block.mul_(sign).clamp_(min=0)
        total = (agreeing * _column(weights, block)).sum(0)
        return total.mul_(sign).div_(voters(agreeing).clamp_(min=1)).mul_(scaling)

    return blockwise(parts, disjoint)


@in_space
def peft_dense_prune(stacks: Stacks, *, density: float, weights: Weights, scaling: float) -> Merged:
    """PEFT's `magnitude_prune_svd` before its truncation: the weighted sum of trimmed tasks."""
    parts = _trimmed(streams(stacks), density)
    return weighted_sum(parts, weights=weights, elect=False, normalize=False, scaling=scaling)


def weighted_sum(
    parts: dict[str, Stream], *, weights: Weights, elect: bool, normalize: bool, scaling: float
) -> Merged:
    """mergekit's `GTATask`: the weighted sum, of entries that agree with its sign if `elect`,
    divided by the weights that went into it if `normalize`."""

    def merge(_: str, block: Tensor) -> Tensor:
        column = _column(weights, block)
        total = block.mul_(column).sum(0)
        if elect:
            sign = plus_or_minus(total)
            agreeing = block.mul_(sign).clamp_(min=0)
            total = agreeing.sum(0).mul_(sign)
            column = agreeing.sign_().mul_(column)
        if normalize:
            divisor = column.sum(0)
            total = total / divisor.masked_fill(divisor.abs() < 1e-8, 1)
        return total.mul_(scaling)

    return blockwise(parts, merge)


def _column(weights: Weights, block: Tensor) -> Tensor:
    """Weights as `[task, 1, 1]`."""
    return block.new_tensor(task_weights(weights, len(block)))[:, None, None]


def _trimmed(parts: dict[str, Stream], density: float) -> dict[str, Stream]:
    """Every module trimmed to exactly `int(density n)` entries a task."""
    threshold = per_group(parts, "tensor", lambda g: trim_threshold(g, density, "exact", None))
    return changed(parts, lambda module, block: trim(block, threshold(module)))
