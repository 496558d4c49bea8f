"""SMILE: the tasks' own updates as experts, of which every input chooses by their row spaces."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from osrm_exp.lora import RANK_CUT, LowRank, Routed, Update, stack
from osrm_exp.lora.low_rank import nearest
from osrm_exp.merging.triplets import triplets


def smile(
    updates: Mapping[str, LowRank], /, *, rank: int | None, gate_rank: int, top_k: int
) -> Mapping[str, Update]:
    """`sum_t p_t(x) delta_t x`, with `p` the softmax of `|V_t x|` over the `top_k` best tasks.

    Every token of every module is routed on its own, without data and without training. Tang et
    al., 2024, arXiv 2408.10174; fusion_bench `SmileLinear`.

    Args:
        updates: a stack a module.
        rank: of an expert, which is truncated to it; null keeps the adapter as it is.
        gate_rank: leading input singular vectors `V_t` of a task that its score is measured in.
        top_k: experts that answer an input.

    Raises:
        ValueError: more experts are asked for than there are tasks.
    """
    tasks = len(next(iter(updates.values())))
    if not 1 <= top_k <= tasks:
        raise ValueError(f"top_k={top_k} of {tasks} tasks: choose from 1 to {tasks}")
    return {module: _routed(given, rank, gate_rank, top_k) for module, given in updates.items()}


def _routed(given: LowRank, rank: int | None, gate_rank: int, top_k: int) -> Routed:
    parts = triplets(given.unstack(), RANK_CUT)
    gate = torch.stack([_rows(part.Vh, gate_rank) for part in parts])
    if rank is None:
        return Routed(given, gate.to(given.dtype), top_k)
    experts = stack([nearest(part, rank) for part in parts])
    return Routed(experts, gate, top_k).to(given.dtype)


def _rows(Vh: torch.Tensor, count: int) -> torch.Tensor:
    """The leading `count` rows, zeros where there are fewer."""
    return torch.nn.functional.pad(Vh[:count], (0, 0, 0, max(0, count - len(Vh))))
