"""DO-Merging: factors pulled apart, then column norms and column directions merged separately.

No code of the authors was released and the text that could be read leaves the norm, the step size
and gamma open: this is our implementation of the published steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from osrm_exp.lora import RANK_CUT, LowRank, Update


def do_merging(
    updates: Mapping[str, LowRank],
    /,
    *,
    gamma: float,
    steps: int,
    lr: float,
    scaling: float,
) -> Mapping[str, Update]:
    """`scaling * (mean of column norms) * (mean of normalised columns)`, exact at rank `R`.

    Zheng et al., arXiv 2505.15875. The paper multiplies sums: its coefficient is `scaling / T^2`.
    Factors are balanced first (`B = U sqrt(S)`, `A = sqrt(S) Vh`), so the result depends on the
    deltas alone.

    Args:
        updates: a stack a module.
        gamma: weight of staying near the trained factors while they are pulled apart.
        steps: of gradient descent, 0 leaves the factors as they are.
        lr: step size relative to the largest that is sure to descend, in (0, 1].
        scaling: of the formula: `T^2` times the paper's coefficient.
    """
    merged = {}
    for module, stack in updates.items():
        tasks = [update.balanced() for update in stack.unstack()]
        As = pulled_apart([u.A for u in tasks], gamma=gamma, steps=steps, lr=lr)
        Bs = pulled_apart([u.B.mT for u in tasks], gamma=gamma, steps=steps, lr=lr)
        pairs = [LowRank(A, B.mT) for A, B in zip(As, Bs)]
        merged[module] = (decoupled_mean(pairs) * scaling).to(stack.A.dtype)
    return merged


def pulled_apart(factors: Sequence[Tensor], *, gamma: float, steps: int, lr: float) -> list[Tensor]:
    """Factors `[rank_t, width]` moved towards mutually orthogonal row spaces.

    Plain gradient descent on `sum_{i != j} ||X_i X_j^T||^2 + gamma sum_i ||X_i - F_i||^2` from
    `X = F`, each factor scaled to rows of unit norm on average. It never leaves the span of all
    rows, so `R x R` coordinates in that span give the very same iterates; Adam's would not be.
    """
    scales = [F.norm() / max(1, len(F)) ** 0.5 for F in factors]
    rows = torch.cat([F / scale if len(F) else F for F, scale in zip(factors, scales)])
    ranks = [len(F) for F in factors]
    if not steps or not len(rows):
        return list(factors)
    Q, R = torch.linalg.qr(rows.mT)
    owner = torch.arange(len(ranks)).repeat_interleave(torch.tensor(ranks)).to(rows.device)
    foreign = owner[:, None] != owner
    start = X = R.mT
    # the loss curves by no more than this: 16 ||X||^2 from the overlaps, 2 gamma from the anchor
    step = lr / (16 * torch.linalg.matrix_norm(start, 2) ** 2 + 2 * gamma)
    for _ in range(steps):
        X = X - step * (4 * (foreign * (X @ X.mT)) @ X + 2 * gamma * (X - start))
    return [scale * part for scale, part in zip(scales, (X @ Q.mT).split(ranks))]


def decoupled_mean(tasks: Sequence[LowRank]) -> LowRank:
    """Mean column norm times mean column direction, `[B_1 … B_T]` with the columns of A rescaled.

    A column norm of a delta is that of a column of `R_B A`, `B = Q_B R_B`. Columns that are zero,
    or no more than rounding beside the task's largest, have no direction.
    """
    norms = torch.stack([(torch.linalg.qr(u.B).R @ u.A).norm(dim=0) for u in tasks])
    exists = norms > RANK_CUT * norms.amax(1, keepdim=True)
    stretch = torch.where(exists, norms.mean(0) / norms, 0) / len(tasks)  # [task, in]
    A = torch.cat([u.A * row for u, row in zip(tasks, stretch)])
    return LowRank(A, torch.cat([u.B for u in tasks], dim=1))
