"""Rules that mask the merged update: one mask a task (EMR, TALL), or one that they share."""

from __future__ import annotations

import torch
from torch import Tensor

from osrm_exp.merging.spaces import Merged, Stacks, in_space
from osrm_exp.merging.streams import Stream, blockwise, per_group, streams


@in_space
def emr(stacks: Stacks, *, rescaler: str) -> Merged:
    """Elect one update, mask it to each task's signs, rescale the task: a per-task result.

    Huang et al., NeurIPS 2024, arXiv 2405.17461. `unified = sign * max_t |delta_t|` over the tasks
    that have the sign of the mean (zero elects minus), and task `t` runs with
    `lambda_t * mask_t * unified`.

    Args:
        stacks: `[task, m, n]` by module, in the space's coordinates.
        rescaler: `lambda_t` is a ratio of L1 norms over all entries (`global`, the paper), or of
            sums of the modules' means (`per_tensor_mean`, the code behind the published numbers).
    """
    if rescaler not in ("global", "per_tensor_mean"):
        raise ValueError(f"rescaler {rescaler!r} is unknown: choose global or per_tensor_mean")
    parts = streams(stacks)

    means = rescaler == "per_tensor_mean"
    scale = per_group(parts, "global", lambda group: _rescalers(group, means))

    def rescaled(module: str, block: Tensor) -> Tensor:
        return _masked_unified(block) * scale(module).to(block)[:, None, None]

    return blockwise(parts, rescaled)


def _rescalers(group: list[Stream], means: bool) -> Tensor:
    """`lambda_t [task]`, 1 where a task's masked update is zero."""
    own = masked = torch.zeros(())
    for part in group:
        count = part.numel if means else 1
        for block in part.blocks():
            own = own + _norm(block) / count
            masked = masked + _norm(_masked_unified(block)) / count
    return torch.where(masked > 0, own / masked, 1)


def _norm(block: Tensor) -> Tensor:
    return block.abs().sum((1, 2), dtype=torch.float64)


def _masked_unified(block: Tensor) -> Tensor:
    """`mask_t * unified [task, rows, n]`."""
    sign = torch.where(block.mean(0) > 0, 1, -1).to(block)
    agreeing = (block * sign).clamp_(min=0)
    unified = agreeing.amax(0).mul_(sign)
    return agreeing.sign_().mul_(unified)


@in_space
def tall_mask(stacks: Stacks, *, mask_threshold: float) -> Merged:
    """The sum of all tasks where a task's own change dominates it: a per-task result.

    Wang et al., ICML 2024, arXiv 2405.07813, eq. 5:
    `mask_t = |delta_t| > mask_threshold * |sum - delta_t|`.
    """
    return blockwise(streams(stacks), lambda _, block: _tall(block, mask_threshold) * block.sum(0))


@in_space
def consensus(stacks: Stacks, *, mask_threshold: float, k: int, scaling: float) -> Merged:
    """The sum of all tasks where at least `k` of `tall_mask`'s masks are set. Ibid., eq. 6."""

    def agreed(_: str, block: Tensor) -> Tensor:
        shared = _tall(block, mask_threshold).sum(0) >= k
        return block.sum(0) * shared * scaling

    return blockwise(streams(stacks), agreed)


def _tall(block: Tensor, mask_threshold: float) -> Tensor:
    """Every task's mask `[task, rows, n]`."""
    return block.abs() > mask_threshold * (block.sum(0) - block).abs()
