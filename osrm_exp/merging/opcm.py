"""OPCM: tasks merged one after another, each without what would disturb the merge so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from osrm_exp.lora import RANK_CUT, Dense, LowRank, svd
from osrm_exp.merging.spaces import Merged, Stacks, in_space
from osrm_exp.merging.triplets import dense, trained


@in_space
def opcm(stacks: Stacks, *, alpha: float, seed: int | None) -> Merged:
    """Every next delta without its part along the merge's singular directions, at the mean norm.

    In the singular bases of the merge `W`, the next delta loses its diagonal and the leading block
    that holds the share `alpha` of W's spectrum; then the whole model is rescaled to the mean norm
    of the tasks so far. Tang et al., NeurIPS 2025, arXiv 2501.09522. The released code clears the
    diagonal beyond W's rank too, in an arbitrary basis (`opcm_dense`); here it ends at the rank.

    Args:
        stacks: `[task, m, n]` by module, in the space's coordinates.
        alpha: share of the sum of singular values, in [0, 1).
        seed: shuffles the tasks, null keeps their order. The order changes the result.

    Raises:
        ValueError: alpha is out of range.
    """
    found = {module: stack.coordinates() for module, stack in stacks.items()}
    merged = in_turn({module: tasks for module, (tasks, _) in found.items()}, alpha, seed, RANK_CUT)
    return {module: lift(merged[module]) for module, (_, lift) in found.items()}


def in_turn(
    tasks: Mapping[str, Sequence[LowRank | Dense]], alpha: float, seed: int | None, cut: float
) -> dict[str, Tensor]:
    """The merge of all tasks, `[m, n]` a module, in the coordinates of `tasks`."""
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha is {alpha}: expected a share of the spectrum in [0, 1)")
    deltas = {module: trained_only(dense(each), cut) for module, each in tasks.items()}
    norms = sum(delta.flatten(1).norm(dim=1) ** 2 for delta in deltas.values()).sqrt()
    order = _order(len(norms), seed)
    merged, shrunk = {module: delta[order[0]] for module, delta in deltas.items()}, 1.0
    for step, task in enumerate(order[1:], start=2):
        merged = {
            module: shrunk * W + undisturbing(deltas[module][task], W, alpha, cut)
            for module, W in merged.items()
        }
        shrunk = _excess(merged, norms[order[:step]].mean().item())
        merged = {module: W / shrunk for module, W in merged.items()}
    return merged


def _order(tasks: int, seed: int | None) -> list[int]:
    if seed is None:
        return list(range(tasks))
    return torch.randperm(tasks, generator=torch.Generator().manual_seed(seed)).tolist()


def _excess(merged: Mapping[str, Tensor], mean: float) -> float:
    """How many times the mean norm of the tasks so far the merge has."""
    norm = sum(W.norm() ** 2 for W in merged.values()).sqrt().item()
    return norm / mean if norm and mean else 1.0  # all tasks so far were zero


def trained_only(deltas: Tensor, cut: float) -> Tensor:
    """`deltas [task, m, n]` without what is rounding, so that no merge starts from rounding."""
    return deltas * trained(deltas.flatten(1).norm(dim=1), cut)[:, None, None]


def undisturbing(delta: Tensor, W: Tensor, alpha: float, cut: float) -> Tensor:
    """`delta [m, n]` without the diagonal and the leading block in the singular bases of W."""
    U, S, Vh = svd(W, cut)
    if not len(S):
        return delta
    # The released code counts from 0: the direction that exceeds the share is outside the block.
    block = int((S.cumsum(0) > alpha * S.sum()).int().argmax())
    cleared = torch.eye(len(S), dtype=torch.bool, device=S.device)
    cleared[:block, :block] = True
    return delta - U @ ((U.mT @ delta @ Vh.mT) * cleared) @ Vh
