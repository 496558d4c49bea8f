"""Exact low-rank merges that need the tasks' data: RegMean, RegMean++ and LM-Cocktail.

Grams arrive as a mapping `{module: [task, in, in]}`, possibly lazy: every module is read once and
dropped, so that no more than one module's grams have to be in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from osrm_exp.lora import LowRank, Update
from osrm_exp.merging.contract import checked
from osrm_exp.merging.geometry import combine, ratio_weights


def regmean(
    updates: Mapping[str, LowRank],
    /,
    gram: Mapping[str, Tensor],
    *,
    off_diagonal: float,
    ridge: float,
    weights: Sequence[float] | None,
) -> Mapping[str, Update]:
    """The delta nearest to every task's on that task's inputs, exactly, at rank `R`.

    Minimises `sum_t w_t ||X_t (D - D_t)^T||^2`: `D = (sum_t w_t D_t G_t) (sum_t w_t G_t)^-1`. Only
    the right factors change, so no `[out, in]` matrix is formed. Jin et al., ICLR 2023.

    Args:
        updates: a stack a module.
        gram: `[task, in, in]` a module, the second moment of its inputs on each task's data.
        off_diagonal: factor of the off-diagonal entries of every gram, 1 leaves them.
        ridge: what is added to each gram's diagonal, relative to the mean diagonal. It enters every
            task alike: inputs that no task has seen get the plain mean, and equal experts stay.
        weights: one a task, null for equal; only their ratios matter.

    Raises:
        ValueError: the summed gram of a module is singular, or its shape is not `[task, in, in]`.
    """
    return {
        module: _regmean(module, stack, gram[module], off_diagonal, ridge, weights)
        for module, stack in updates.items()
    }


def _regmean(
    module: str,
    stack: LowRank,
    gram: Tensor,
    off_diagonal: float,
    ridge: float,
    weights: Sequence[float] | None,
) -> LowRank:
    width = stack.shape[1]
    checked("gram", module, gram, len(stack), width, width)
    weights = ratio_weights(weights, len(stack))
    total, right = torch.zeros(width, width, dtype=torch.float64, device=stack.A.device), []
    for weight, update, moment in zip(weights, stack.unstack(), gram):
        moment = moment.to(total)
        moment = off_diagonal * moment + (1 - off_diagonal) * moment.diagonal().diag()
        total += weight * moment
        right.append(weight * (update.A.double() @ moment))
    floor = ridge * (total.diagonal().mean().item() or 1.0) / sum(weights)  # of one task's gram
    right = [C + weight * floor * u.A for C, weight, u in zip(right, weights, stack.unstack())]
    total.diagonal().add_(floor * sum(weights))
    factor, failed = torch.linalg.cholesky_ex(total)
    if failed:
        raise ValueError(f"the summed gram of {module} is singular: set ridge above {ridge}")
    A = torch.cholesky_solve(torch.cat(right).mT, factor).mT
    return LowRank(A.to(stack.A), stack.total().B)


class PrefixGrams(Protocol):
    """What RegMean++ asks of a model: grams behind the part of it that is already merged."""

    blocks: Sequence[Sequence[str]]  # adapted modules, block by block in the order of the forward

    def __call__(
        self, merged: Mapping[str, Update], modules: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """Grams `[task, in, in]` of `modules`, one block.

        Every task's inputs go through the model with `merged` in all earlier blocks and in what
        precedes them, and through that task's own expert within the block.
        """


def regmean_pp(
    updates: Mapping[str, LowRank],
    /,
    gram_after: PrefixGrams,
    *,
    off_diagonal: float,
    ridge: float,
    weights: Sequence[float] | None,
) -> Mapping[str, Update]:
    """RegMean block by block, each on the inputs that the merged blocks before it produce.

    Modules outside every block are averaged first. Nguyen et al., arXiv 2508.03121; the order is
    that of MergeBench's code.
    """
    within = {module for block in gram_after.blocks for module in block}
    if unknown := within - set(updates):
        raise ValueError(f"no adapter has the modules {sorted(unknown)} of the blocks")
    merged: dict[str, Update] = {}
    for module in updates.keys() - within:
        shares = updates[module].A.new_tensor(ratio_weights(weights, len(updates[module])))
        merged[module] = combine(updates[module], shares / shares.sum())
    for block in gram_after.blocks:
        grams = gram_after(dict(merged), block)
        part = {module: updates[module] for module in block}
        merged |= regmean(part, grams, off_diagonal=off_diagonal, ridge=ridge, weights=weights)
    return {module: merged[module] for module in updates}


def lm_cocktail(
    updates: Mapping[str, LowRank], /, losses: Sequence[float] | Tensor, *, temperature: float
) -> Mapping[str, Update]:
    """Deltas weighed by `softmax(-loss / temperature)` of their experts, exact at rank `R`.

    Xiao et al., ACL Findings 2024, arXiv 2311.13534.

    Args:
        updates: a stack a module.
        losses: each expert's mean loss on a few examples of what the merge is for, one a task; one
            more at the end is the base model's, which takes its share of the weight, no more.
        temperature: above 0; the lower, the more the best expert has to say.
    """
    given = torch.as_tensor(losses, dtype=torch.float64)
    if not given.isfinite().all():
        raise ValueError(f"the losses {given.tolist()} are not all finite: give one number a task")
    weights = (-given / temperature).softmax(0)
    merged = {}
    for module, stack in updates.items():
        if len(weights) - len(stack) not in (0, 1):
            raise ValueError(
                f"{len(weights)} losses for {len(stack)} tasks: give one a task, and the base "
                "model's at the end if it takes part"
            )
        merged[module] = combine(stack, weights[: len(stack)])
    return merged
