"""WUDI: one delta that acts on every task's own row space as that task's delta does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from osrm_exp.lazy import Lazy
from osrm_exp.lora import RANK_CUT, Dense, LowRank, Update
from osrm_exp.merging.spaces import Merged, Stacks, in_space
from osrm_exp.merging.triplets import rotated, triplets


@in_space
def wudi(stacks: Stacks, *, scaling: float) -> Merged:
    """The minimiser of `sum_t ||(X - delta_t) delta_t.T||^2 / ||delta_t||^2` of least norm.

    `X = (sum_t delta_t G_t / n_t) (sum_t G_t / n_t)^+` with `G_t = delta_t.T delta_t` and
    `n_t = ||delta_t||^2`: RegMean with the deltas' own grams. The objective is that of Cheng et
    al., ICML 2025, arXiv 2503.08099, eq. 11, who approach it by Adam (`wudi_adam`).
    """
    return {module: rotated(stack, closed_form) * scaling for module, stack in stacks.items()}


def closed_form(tasks: Sequence[LowRank | Dense]) -> Tensor:
    """X from its least-squares equations `X V_t S_t / |S_t| = U_t S_t^2 / |S_t|`, tasks stacked.

    No gram is formed: that would square the condition number.
    """
    parts = triplets(tasks, RANK_CUT)
    shares = [part.S / part.S.norm() if len(part.S) else part.S for part in parts]
    rows = torch.cat([s[:, None] * part.Vh for s, part in zip(shares, parts)])  # [R, n]
    wanted = torch.cat([part.U * (s * part.S) for s, part in zip(shares, parts)], dim=1)  # [m, R]
    return wanted @ torch.linalg.pinv(rows, rtol=RANK_CUT).mT


def wudi_adam(
    updates: Mapping[str, LowRank],
    /,
    *,
    lr: float,
    iterations: int,
    betas: Sequence[float],
    eps: float,
    scaling: float,
) -> Mapping[str, Update]:
    """WUDI as published: Adam from the sum of the deltas, a fixed number of steps.

    Adam rescales every entry, so the result leaves the span of the adapters: it is dense, of full
    rank. Its steps have the length `lr` whatever the scale of the deltas.
    """

    def compute(module: str) -> Dense:
        merged = _adam(updates[module].to(torch.float64), iterations, lr=lr, betas=betas, eps=eps)
        return Dense((scaling * merged).to(updates[module].dtype))

    return Lazy(updates, compute)


def _adam(stack: LowRank, iterations: int, **settings) -> Tensor:
    """The sum of the deltas and what Adam changes of it, kept apart: one task's change is 0."""
    together, weights, own = stack.total(), [], []
    for update in stack.unstack():
        inner = update.B.mT @ update.B
        squared = (inner * (update.A @ update.A.mT)).sum()
        weights.append(2 * inner / squared if squared > 0 else inner)
        own.append(torch.ones_like(inner))
    # gradient = sum_t 2 (X - delta_t) delta_t.T delta_t / n_t, without any delta_t
    right = torch.block_diag(*weights) @ together.A  # [R, in]
    others = together.B @ ((together.A @ together.A.mT) * (1 - torch.block_diag(*own)))  # [out, R]
    change = together.A.new_zeros(together.shape)
    optimizer = torch.optim.Adam([change], **settings)
    for _ in range(iterations):
        change.grad = (change @ together.A.mT + others) @ right
        optimizer.step()
    return together.delta + change
