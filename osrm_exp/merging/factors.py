"""Rules on the factors: A and B are combined apart, as PEFT, LoraHub and RobustMerge do.

A result keeps the rank of one adapter, but it is no combination of the deltas: the product of two
sums holds every cross term `B_i A_j`, and depends on how a delta is split into factors. So these
rules never stand in for their namesakes on deltas; only PEFT's `cat` and `svd` act on deltas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from osrm_exp.lora import LowRank, Update
from osrm_exp.merging.geometry import combine, task_weights

PerTask = Sequence[float] | None  # one number a task, null for 1 each
Rule = Callable[[Tensor, Tensor], Tensor]  # (factors [task, m, n], weights [task]) -> [m, n]


def peft_cat(
    updates: Mapping[str, LowRank], /, *, weights: PerTask, scaling: float
) -> Mapping[str, Update]:
    """`sum_t w_t delta_t` by concatenation, exact at rank `R`: static CAT, task arithmetic.

    PEFT's `cat`; LoRA Soups, arXiv 2410.13025, with given in place of learned weights.
    """
    return {module: _weighted(stack, weights) * scaling for module, stack in updates.items()}


def peft_svd(
    updates: Mapping[str, LowRank],
    /,
    *,
    weights: PerTask,
    scaling: float,
    svd_rank: int | None,
) -> Mapping[str, Update]:
    """`sum_t w_t delta_t` truncated to `svd_rank`, or null to the largest rank of an adapter."""
    merged = {}
    for module, stack in updates.items():
        rank = svd_rank if svd_rank is not None else max(stack.ranks)
        merged[module] = _weighted(stack, weights).truncate(rank).to(stack.dtype) * scaling
    return merged


def peft_linear(
    updates: Mapping[str, LowRank],
    /,
    *,
    weights: PerTask,
    scaling: float,
    lora_scaling: PerTask,
) -> Mapping[str, Update]:
    """`(sum_t sqrt(w_t s_t) B_t) (sum_t sqrt(w_t s_t) A_t)`; a negative weight's sign goes to A.

    Args:
        updates: a stack a module.
        weights: one a task, null for 1 each. `T` equal adapters give `T^2` times one of them.
        scaling: factor of the result.
        lora_scaling: the tasks' LoRA scalings `s`, all of which are folded into B; null where they
            are equal, since a common one changes nothing.

    Raises:
        ValueError: adapters of one module have different ranks.
    """
    return _apart(updates, _sum, weights, scaling, lora_scaling)


def peft_magnitude_prune(
    updates: Mapping[str, LowRank],
    /,
    *,
    density: float,
    weights: PerTask,
    scaling: float,
    lora_scaling: PerTask,
) -> Mapping[str, Update]:
    """`peft_linear` of the `density` largest entries of every A and every B."""
    rule = _pruned(_sum, partial(_largest, density=density))
    return _apart(updates, rule, weights, scaling, lora_scaling)


def peft_ties(
    updates: Mapping[str, LowRank],
    /,
    *,
    density: float,
    majority_sign: str,
    weights: PerTask,
    scaling: float,
    lora_scaling: PerTask,
) -> Mapping[str, Update]:
    """TIES on the As and, separately, on the Bs. The signs are elected without weights.

    What elects an entry's `majority_sign` is the `total` of its values or the `frequency` of its
    signs; a draw is a plus.
    """
    mean = partial(_disjoint_mean, majority_sign=majority_sign)
    rule = _pruned(mean, partial(_largest, density=density))
    return _apart(updates, rule, weights, scaling, lora_scaling)


def peft_dare_linear(
    updates: Mapping[str, LowRank],
    /,
    *,
    density: float,
    weights: PerTask,
    scaling: float,
    lora_scaling: PerTask,
    seed: int,
) -> Mapping[str, Update]:
    """`peft_linear` of factors whose entries survive with probability `density`, rescaled by it."""
    generator = torch.Generator().manual_seed(seed)
    rule = _pruned(_sum, partial(_lucky, density=density, generator=generator))
    return _apart(updates, rule, weights, scaling, lora_scaling)


def peft_dare_ties(
    updates: Mapping[str, LowRank],
    /,
    *,
    density: float,
    majority_sign: str,
    weights: PerTask,
    scaling: float,
    lora_scaling: PerTask,
    seed: int,
) -> Mapping[str, Update]:
    """`peft_ties` with the random drops of DARE in place of the trim."""
    generator = torch.Generator().manual_seed(seed)
    mean = partial(_disjoint_mean, majority_sign=majority_sign)
    rule = _pruned(mean, partial(_lucky, density=density, generator=generator))
    return _apart(updates, rule, weights, scaling, lora_scaling)


def lorahub(updates: Mapping[str, LowRank], /, *, weights: PerTask) -> Mapping[str, Update]:
    """`(sum_t w_t B_t) (sum_t w_t A_t)`, the family that LoraHub searches; null is the mean.

    Huang et al., COLM 2024, arXiv 2307.13269.
    """
    merged = {}
    for module, stack in _of_one_rank(updates):
        tasks = len(stack)
        w = stack.A.new_tensor(task_weights(weights or [1 / tasks] * tasks, tasks))
        merged[module] = LowRank(_sum(stack.A, w), _sum(stack.B, w))
    return merged


def robustmerge(
    updates: Mapping[str, LowRank], /, *, density: float, eps: float, scaling: float
) -> Mapping[str, Update]:
    """Sums of pruned factors; a direction that pruning cost much in A counts more in B.

    `c_t[j] = ||A_t[j]||_1 / ||pruned A_t[j]||_1`, relative to its sum over tasks; `A = sum A_t`,
    `B = sum B_t diag(c_t)`, both pruned. Zeng et al., arXiv 2502.17159.
    """
    merged = {}
    for module, stack in _of_one_rank(updates):
        A, B = (_over_threshold(factors, density) for factors in (stack.A, stack.B))
        lost = stack.A.abs().sum(-1) / (A.abs().sum(-1) + eps)  # [task, rank], at least 1
        share = lost / (lost.sum(0) + eps)
        merged[module] = LowRank(A.sum(0), scaling * (B * share[:, None]).sum(0))
    return merged


def _weighted(stack: LowRank, weights: PerTask) -> LowRank:
    return combine(stack, stack.A.new_tensor(task_weights(weights, len(stack))))


def _of_one_rank(updates: Mapping[str, LowRank]) -> list[tuple[str, LowRank]]:
    """The modules, none of which may have unequal ranks. Rank 0 is a task that is not there.

    Such a task is all padding: it adds nothing to a sum and has no sign to vote with.
    """
    for module, stack in updates.items():
        if len(set(stack.ranks) - {0}) > 1:
            raise ValueError(
                f"{module} has adapters of rank {sorted(set(stack.ranks))}, and factors are added "
                "entry by entry: use a method on deltas, or bring all adapters to one rank"
            )
    return list(updates.items())


def _apart(
    updates: Mapping[str, LowRank],
    rule: Rule,
    weights: PerTask,
    scaling: float,
    lora_scaling: PerTask,
) -> Mapping[str, Update]:
    """`rule` on the As and on the Bs, each weighted by `sqrt(|w s|)`."""
    merged = {}
    for module, stack in _of_one_rank(updates):
        w = stack.A.new_tensor(task_weights(weights, len(stack)))
        s = stack.A.new_tensor(task_weights(lora_scaling, len(stack)))
        root = (w * s).abs().sqrt()
        A = rule(stack.A, root * torch.where(w * s < 0, -1, 1))
        merged[module] = LowRank(A, scaling * rule(stack.B / s[:, None, None], root))
    return merged


def _pruned(rule: Rule, prune: Callable[[Tensor], Tensor]) -> Rule:
    return lambda factors, weights: rule(prune(factors), weights)


def _sum(factors: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("t,tmn->mn", weights, factors)


def _disjoint_mean(factors: Tensor, weights: Tensor, majority_sign: str) -> Tensor:
    """Sum of the weighted entries that have the elected sign, over their number."""
    votes = {"total": factors, "frequency": factors.sign()}
    if majority_sign not in votes:
        raise ValueError(f"majority_sign is {majority_sign!r}: expected one of {list(votes)}")
    elected = torch.where(votes[majority_sign].sum(0) >= 0, 1, -1)
    agree = factors.sign() == elected
    return _sum(factors * agree, weights) / agree.sum(0).clamp(min=1)


def _largest(factors: Tensor, density: float) -> Tensor:
    """Exactly `int(density * size)` entries of each task's factor survive, by magnitude."""
    flat = factors.flatten(1)
    kept = flat.abs().topk(int(_checked(density) * flat.shape[1])).indices
    return torch.zeros_like(flat).scatter(1, kept, flat.gather(1, kept)).view_as(factors)


def _over_threshold(factors: Tensor, density: float) -> Tensor:
    """Entries of each task's factor at or above its order statistic: one more than `_largest`."""
    flat = factors.abs().flatten(1)
    drop = flat.shape[1] - int(_checked(density) * flat.shape[1])
    if drop == 0:
        return factors
    return factors * (flat >= flat.kthvalue(drop, keepdim=True).values).view_as(factors)


def _lucky(factors: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """What `torch.bernoulli` draws in float32, in half its time."""
    words = torch.empty(factors.shape, dtype=torch.int32).random_(generator=generator)
    kept = words.bitwise_and_(2**24 - 1) < _checked(density) * 2**24
    return factors * kept.to(factors) / density


def _checked(density: float) -> float:
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}: expected a fraction above 0 and at most 1")
    return density
