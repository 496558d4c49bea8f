"""Spectral merges: the spectrum of the sum flattened, or the tasks' singular vectors decorrelated.

Every rule here turns with its coordinates, `f(P X Q.T) = P f(X) Q.T` for orthonormal P and Q. So
factors are merged in the singular bases of their stacks, `R x R` at most, and lifted: the same
number as on the deltas at the cost of two thin QRs. Null directions are cut before a rule can see
them; `spectral_dense` has the published forms, which do see them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from osrm_exp.lora import RANK_CUT, SVD, Dense, LowRank, svd
from osrm_exp.merging.spaces import Merged, Stacks, in_space
from osrm_exp.merging.triplets import (
    above,
    decorrelated,
    dense,
    flat,
    head,
    rotated,
    trained,
    triplets,
)


@in_space
def iso_c(stacks: Stacks, *, scaling: float) -> Merged:
    """All singular values of the sum become their mean over its numerical rank.

    `scaling * mean(S) * U @ V.T` with `U S V.T = sum_t delta_t`. Marczak et al., ICML 2025,
    arXiv 2502.04959, alg. 1, in the core: the paper's mean runs over `min(out, in)` directions, all
    but `R` of them arbitrary, so its `scaling` is not comparable.
    """
    return {
        module: flat(stack.total().svd()).to(stack.dtype) * scaling
        for module, stack in stacks.items()
    }


@in_space
def iso_cts(stacks: Stacks, *, common_space_fraction: float, scaling: float) -> Merged:
    """Iso-C of a basis in which every task has a few directions that the sum does not.

    About `common_space_fraction` of the core's directions come from the sum, the others in equal
    numbers, at least one, from the tasks' remainders. Marczak et al., ICML 2025, alg. 2, in the
    core.
    """

    def share(size: int, tasks: int) -> tuple[int, int]:
        common, own = filled(size, tasks, common_space_fraction)
        if own or common_space_fraction == 1:
            return common, own
        return max(0, size - tasks), 1  # a small core would round to none, which is iso_c

    return {m: rotated(s, common_and_own, share, RANK_CUT) * scaling for m, s in stacks.items()}


@in_space
def iso_cts_fixed_rank(
    stacks: Stacks, *, target_rank: int, task_directions: int, scaling: float
) -> Merged:
    """Iso-CTS of `target_rank` directions, `task_directions` of them from every task's remainder.

    The baseline of compress-then-merge, arXiv 2606.03723. A module whose core is smaller than
    `target_rank` gets the rank of its core.

    Raises:
        ValueError: the tasks alone need more than `target_rank`.
    """

    def share(size: int, tasks: int) -> tuple[int, int]:
        own = task_directions * tasks
        if own > target_rank:
            raise ValueError(
                f"target_rank {target_rank} has no room for {task_directions} directions of each "
                f"of {tasks} tasks: raise it to {own} or more"
            )
        return max(0, min(target_rank, size) - own), task_directions

    return {m: rotated(s, common_and_own, share, RANK_CUT) * scaling for m, s in stacks.items()}


@in_space
def tsv(stacks: Stacks, *, components: int | None, isotropic: bool, scaling: float) -> Merged:
    """`scaling * P(U) diag(S) P(V).T`: all tasks' singular triplets, decorrelated on both sides.

    `U = [U_1 … U_T]`, V alike, `P` the polar factor. TSV-Merge, Gargiulo et al., CVPR 2025,
    arXiv 2412.00081, alg. 1, limited to the tasks' ranks.

    Args:
        stacks: `[task, m, n]` by module, in the space's coordinates.
        components: leading triplets of every task, null for all up to its numerical rank.
        isotropic: the result's singular values become their mean (TSV + Iso of Core Space).
        scaling: factor of the result.
    """

    def rule(tasks: Sequence[LowRank | Dense]) -> Tensor:
        parts = [head(part, components) for part in triplets(tasks, RANK_CUT)]
        merged = decorrelated(parts, RANK_CUT)
        return flat(svd(merged)).delta if isotropic else merged

    return {module: rotated(stack, rule) * scaling for module, stack in stacks.items()}


@in_space
def cart(stacks: Stacks, *, density: float, mu: float, scaling: float) -> Merged:
    """The mean delta and the leading part of every task's deviation from it.

    `scaling * (mean + mu * sum_t top_k(delta_t - mean))` with `k = ceil(density * min(m, n))` of
    the space's coordinates: `min(out, in)` in `delta`, `R` in `core`. Choi et al., 2024,
    arXiv 2412.12153.
    """

    def rule(tasks: Sequence[LowRank | Dense], size: int) -> Tensor:
        deltas = dense(tasks)
        mean, count = deltas.mean(0), math.ceil(density * size)
        leading = [head(svd(delta - mean, cut=0), count) for delta in deltas]
        return mean + mu * sum((part.U * part.S) @ part.Vh for part in leading)

    return {m: rotated(s, rule, min(s.shape)) * scaling for m, s in stacks.items()}


def common_and_own(
    tasks: Sequence[LowRank | Dense], share: Callable[[int, int], tuple[int, int]], cut: float
) -> Tensor:
    """Directions of the sum and of every task's remainder, decorrelated and equally strong.

    `share(size, tasks)` says how many of the sum and how many of each task. A task whose delta is
    zero, or rounding beside the others, takes no part.
    """
    deltas = dense(tasks)
    norms = deltas.flatten(1).norm(dim=1)
    tasks = [task for task, has in zip(tasks, trained(norms, cut).tolist()) if has]
    if not tasks:
        return torch.zeros_like(deltas[0])
    common, own = share(min(deltas.shape[1:]), len(tasks))
    total = svd(deltas.sum(0), cut)  # of tasks that cancel: rounding beside the largest of them
    parts = [head(above(total, cut * norms.max().item()), common)]
    for task in tasks:
        remainder = above(task.without(parts[0].U).svd(cut=0), cut * norms.max().item())
        parts.append(head(remainder, own))
    mean = torch.cat([part.S for part in parts]).mean().item()
    return decorrelated([SVD(U, torch.full_like(S, mean), Vh) for U, S, Vh in parts], cut)


def filled(size: int, tasks: int, fraction: float) -> tuple[int, int]:
    """Directions of the sum and of each task that fill a core, in equal numbers for the tasks."""
    own = round((size - int(fraction * size)) / tasks)  # half to even, as released
    return max(0, size - own * tasks), own
