"""Exact order statistics of streams, and the trimming that they serve.

No magnitude is kept and nothing is sorted: a sample brackets the wanted value, one pass over the
stream counts what lies below the bracket and collects the little that lies inside, and the counts
decide. Where the bracket missed, or ties fill it, further passes halve it.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Generator, Tensor

from osrm_exp.merging.streams import Stream

FEW = 2**20  # entries, over all tasks, that are collected as they are
COLLECT = 2**24  # entries, over all tasks, that may be collected at all
SAMPLE = range(2**14, 2**20)  # entries of a task that bracket a value: 3 % to 0.4 % lie inside


def kth_smallest(parts: list[Stream], k: int, least: float = -math.inf) -> Tensor:
    """The `k`-th smallest entry (from 1, ties counted) of every task over all parts, `[task]`.

    `least` is a lower bound of the entries, 0 for magnitudes. The result is an entry of the stream.
    """
    total = sum(part.numel for part in parts)
    if not 1 <= k <= total:
        raise ValueError(f"there is no entry number {k} among {total}")
    bottom = torch.full(parts[0].shape[:1], least, dtype=parts[0].dtype, device=parts[0].device)
    top = torch.full_like(bottom, math.inf)
    low, high = (bound.clone() for bound in _bracket(parts, k, total, bottom, top))
    while not torch.equal(bottom, top):
        upto, within, inside = _census(parts, low, high)
        for task, rank in enumerate((k - upto).tolist()):
            if rank <= 0:
                top[task] = low[task]
            elif rank > within[task]:
                bottom[task] = high[task]
            elif len(inside[task]):
                bottom[task] = top[task] = inside[task].kthvalue(rank).values
            else:
                bottom[task], top[task] = low[task], high[task]
        low, high = _middle(bottom, top), top.clone()
    return bottom


def _bracket(
    parts: list[Stream], k: int, total: int, bottom: Tensor, top: Tensor
) -> tuple[Tensor, Tensor]:
    """Bounds `[task]` that hold the wanted value but for one case in a million."""
    if total * len(bottom) <= FEW:
        return bottom, top
    # The draw decides how fast the value is found, not which value: the seed is no hyperparameter.
    generator = Generator().manual_seed(0)
    wanted = min(max(total * len(bottom) // 2048, SAMPLE.start), SAMPLE.stop)
    counts = [math.ceil(wanted * part.numel / total) for part in parts]
    sample = torch.cat([p.sample(c, generator) for p, c in zip(parts, counts)], dim=1)
    size = sample.shape[1]
    middle, spread = size * k / total, math.sqrt(size * k / total * (1 - k / total))
    margin = 5 * spread + len(parts) + 1
    first, last = math.floor(middle - margin), math.ceil(middle + margin)
    low = sample.kthvalue(first, dim=1).values if first >= 1 else bottom
    return low, sample.kthvalue(last, dim=1).values if last <= size else top


def _census(parts: list[Stream], low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """`(entries <= low [task], entries in (low, high) [task], those entries of every task)`.

    None are collected where they are too many.
    """
    tasks, total = len(low), sum(part.numel for part in parts)
    upto = torch.full((tasks,), total, device=low.device)
    within, room = torch.zeros_like(upto), COLLECT
    collected: list[tuple[Tensor, ...]] = []
    above = beyond = low.new_empty(0)
    for part in parts:
        for block in part.blocks():
            flat = block.reshape(tasks, -1)
            if above.shape != flat.shape:
                above, beyond = torch.empty_like(flat), torch.empty_like(flat)
            # Comparisons written into floats are several times faster than into booleans.
            torch.gt(flat, low[:, None], out=above)
            torch.ge(flat, high[:, None], out=beyond)
            upto -= (more := above.sum(1).long())
            within += (count := (more - beyond.sum(1).long()).clamp_(min=0))
            inside = above.sub_(beyond).clamp_(min=0)
            room -= int(count.sum())
            if room >= 0:
                collected.append(_masked(flat, inside.bool()).split(count.tolist()))
    if room < 0 or not collected:
        return upto, within, [low.new_empty(0)] * tasks
    return upto, within, [torch.cat(values) for values in zip(*collected)]


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    if values.is_cpu:  # NumPy skips what is masked several times faster than torch
        return torch.from_numpy(values.numpy()[mask.numpy()])
    return values[mask]


def _middle(a: Tensor, b: Tensor) -> Tensor:
    """The number halfway between `a` and `b` in the order of floating-point numbers."""
    whole = {torch.float32: torch.int32, torch.float64: torch.int64}[a.dtype]
    least = torch.iinfo(whole).min

    def flip(bits: Tensor) -> Tensor:  # negative numbers count downwards; its own inverse
        return torch.where(bits < 0, least - bits, bits)

    x, y = flip(a.view(whole)), flip(b.view(whole))
    return flip((x & y) + ((x ^ y) >> 1)).view(a.dtype)


def trim_threshold(
    parts: list[Stream], density: float, counting: str, total_parameters: int | None
) -> Tensor:
    """The smallest magnitude that survives a trim to `density`, `[task]`; ties all survive.

    `counting` says how many survive of `d` entries: `kthvalue` `int(d density) + 1` (TIES' released
    code), `mask_rate` `d - int(d (1 - density)) + 1` (MergeLM), `exact` `int(d density)` (PEFT,
    mergekit). `total_parameters` counts the zeros of a whole checkpoint as entries, too.
    """
    entries = sum(part.numel for part in parts)
    d = total_parameters or entries
    if not 0 <= density <= 1:
        raise ValueError(f"density {density} is no share: choose a number from 0 to 1")
    if d < entries:
        raise ValueError(f"total_parameters {d} is less than the {entries} that adapters change")
    ranks = {
        "kthvalue": d - int(d * density),
        "mask_rate": int(d * (1 - density)),
        "exact": d - int(d * density) + 1,
    }
    if counting not in ranks:
        raise ValueError(f"counting {counting!r} is unknown: choose one of {', '.join(ranks)}")
    rank = ranks[counting] - (d - entries)
    known = partial(
        torch.full, parts[0].shape[:1], dtype=parts[0].dtype, device=parts[0].device
    )  # fmt: skip
    if rank <= 0:  # a zero outside the adapters is the threshold: everything survives
        return known(0)
    if rank > entries:
        return known(math.inf)
    return kth_smallest([part.map(Tensor.abs_) for part in parts], rank, least=0.0)


def trim(block: Tensor, threshold: Tensor) -> Tensor:
    """Zero what is smaller than its task's threshold, in place; `block [task, *]`."""
    below = threshold.nextafter(torch.full_like(threshold, -math.inf)).tolist()
    for values, limit in zip(block, below):
        torch.hardshrink(values, limit, out=values)
    return block
