"""Sums of the tasks' deltas, and the two references of every table: no merge, and no merging."""

from __future__ import annotations

from collections.abc import Mapping

from osrm_exp.lora import LowRank
from osrm_exp.merging.spaces import Merged, Stacks, in_space


@in_space
def task_arithmetic(stacks: Stacks, *, scaling: float) -> Merged:
    """`scaling * sum_t delta_t`. Ilharco et al., ICLR 2023, arXiv 2212.04089."""
    return {module: stack.total() * scaling for module, stack in stacks.items()}


@in_space
def average(stacks: Stacks) -> Merged:
    """`sum_t delta_t / T`. Model soups, Wortsman et al., ICML 2022, arXiv 2203.05482."""
    return {module: stack.total() * (1 / len(stack)) for module, stack in stacks.items()}


def individual(updates: Mapping[str, LowRank], /) -> Mapping[str, LowRank]:
    """Every task keeps its own adapter, a per-task result: the upper reference."""
    return dict(updates)


def pretrained(updates: Mapping[str, LowRank], /) -> Mapping[str, LowRank]:
    """No update at all, rank 0 everywhere: the lower reference."""
    return {module: LowRank(u.A[0, :0], u.B[0, :, :0]) for module, u in updates.items()}
