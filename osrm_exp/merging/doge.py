"""DOGE TA: task arithmetic of trimmed deltas plus one common modification that restores the tasks.

The common modification lowers every task's loss `sum_rows <delta_j, delta_j - merged>^2`, in which
`merged` is the weighted sum, while it is kept out of the space that the tasks share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from osrm_exp.lazy import Lazy
from osrm_exp.lora import RANK_CUT, Dense, LowRank, Update, basis
from osrm_exp.merging.geometry import inner_products, row_products
from osrm_exp.merging.selection import trim_threshold
from osrm_exp.merging.streams import Stream, stream
from osrm_exp.merging.triplets import head, trained, triplets


def doge_ta(
    updates: Mapping[str, LowRank],
    /,
    *,
    eta: float,
    density: float,
    subspace: int,
    iterations: int,
    lr: float,
) -> Mapping[str, Update]:
    """`sum_t w_t mask_t (delta_t + D)`, D by Adam as in the public port, dense.

    `w_t = eta / ||delta_t||` a module, `mask_t` the largest `density` of a task's entries over all
    modules. Wei et al., ICML 2025, arXiv 2501.01230; fusion_bench `DOGE_TA_Algorithm`. The gradient
    is kept out of the shared space but Adam rescales its entries, so D is not (`doge_ta_sgd`).

    Args:
        updates: a stack a module.
        eta: the size that every task's delta is given.
        density: share of a task's entries that is kept, in (0, 1].
        subspace: the shared space has `min(out, in) / subspace` directions, fewer where the tasks'
            leading left vectors have a smaller numerical rank (the port fills up with null ones).
        iterations: steps of Adam.
        lr: its step size.
    """
    return _doge(updates, eta, density, subspace, partial(adam, iterations=iterations, lr=lr))


def doge_ta_sgd(
    updates: Mapping[str, LowRank],
    /,
    *,
    eta: float,
    density: float,
    subspace: int,
    iterations: int,
    lr: float,
) -> Mapping[str, Update]:
    """`doge_ta` by gradient descent, whose modification stays out of the shared space. Ours.

    The modification has rank `R` and its rows lie in the tasks' row spaces; the steps cost
    `R x R` products. `lr` is a share of the largest step that is sure to lower the loss.
    """

    def modify(stack: LowRank, weights: Tensor, Q: Tensor) -> Tensor:
        return descent(stack, weights, Q, iterations=iterations, lr=lr).delta

    return _doge(updates, eta, density, subspace, modify)


def doge_tasks(
    updates: Mapping[str, LowRank],
    /,
    *,
    eta: float,
    density: float,
    subspace: int | None,
    iterations: int,
    lr: float,
) -> Mapping[str, Dense]:
    """What DOGE AM scales: every task's masked delta with a modification of its own.

    `mask_t (delta_t + D_t)`, `[task, out, in]`, all `D_t` by one Adam on the loss of `doge_ta` with
    `sum_t w_t (delta_t + D_t)` merged; the weights `w_t` shape the modifications and go no further.
    fusion_bench `DOGE_AM`; ibid. As a gradient is `w_t` times one and the same matrix, and Adam is
    blind to scales, the modifications come out nearly equal.

    Args:
        updates: a stack a module.
        eta: as in `doge_ta`.
        density: as in `doge_ta`.
        subspace: as in `doge_ta`; null is the number of tasks, as in the port.
        iterations: as in `doge_ta`.
        lr: as in `doge_ta`.
    """
    precise, parts, threshold = _trimmed(updates, density)

    def compute(module: str) -> Dense:
        stack = precise[module]
        weights, Q = balancing(stack, eta), shared_space(stack, subspace or len(stack))
        kept = torch.cat([block.clone() for block in parts[module].blocks()], dim=1)
        mask = kept.abs() >= threshold[:, None, None]
        changes = adam_tasks(stack, weights, Q, iterations=iterations, lr=lr)
        return Dense((mask * kept.add_(changes)).to(updates[module].dtype))

    return Lazy(updates, compute)


def _doge(
    updates: Mapping[str, LowRank],
    eta: float,
    density: float,
    subspace: int,
    modify: Callable[[LowRank, Tensor, Tensor], Tensor],
) -> Lazy[Dense]:
    precise, parts, threshold = _trimmed(updates, density)

    def compute(module: str) -> Dense:
        stack = precise[module]
        weights = balancing(stack, eta)
        change = modify(stack, weights, shared_space(stack, subspace))
        merged, start = torch.empty_like(change), 0
        for block in parts[module].blocks():  # read as the threshold was, to the last bit
            rows = slice(start, start + block.shape[1])
            kept = (block.abs() >= threshold[:, None, None]) * weights[:, None, None]
            merged[rows] = (kept * (block + change[rows])).sum(0)
            start = rows.stop
        return Dense(merged.to(updates[module].dtype))

    return Lazy(updates, compute)


def _trimmed(
    updates: Mapping[str, LowRank], density: float
) -> tuple[dict[str, LowRank], dict[str, Stream], Tensor]:
    """Stacks in float64, their entries, and by task `[task]` from what magnitude one is kept."""
    precise = {module: stack.to(torch.float64) for module, stack in updates.items()}
    parts = {module: stream(stack) for module, stack in precise.items()}
    return precise, parts, trim_threshold(list(parts.values()), density, "kthvalue", None)


def balancing(stack: LowRank, eta: float) -> Tensor:
    """`eta / ||delta_t||`, `[task]`; 0 for a delta that is zero, or rounding beside the others."""
    norms = inner_products(stack).diagonal().clamp(min=0).sqrt()
    return torch.where(trained(norms, RANK_CUT), eta / norms, 0)


def shared_space(stack: LowRank, subspace: int) -> Tensor:
    """Orthonormal basis `[out, k]` of what the tasks' leading left singular vectors share."""
    parts = [part for part in triplets(stack.unstack(), RANK_CUT) if len(part.S)]
    if not parts:
        return stack.B.new_zeros(stack.shape[0], 0, dtype=torch.float64)
    each = min(stack.shape) // len(parts)
    leading = torch.cat([head(part, each).U for part in parts], dim=1)
    return basis(leading)[:, : min(stack.shape) // subspace]


def loss(stack: LowRank, weights: Tensor, change: Tensor) -> Tensor:
    """The tasks' loss with the modification `change [out, in]`, a scalar."""
    images = change @ stack.total().A.mT
    return (_residuals(stack, weights)(images) ** 2).sum()


def adam(stack: LowRank, weights: Tensor, Q: Tensor, *, iterations: int, lr: float) -> Tensor:
    """The modification `[out, in]` by Adam from 0, with gradients orthogonal to Q."""
    A, gradient = stack.total().A, _gradient(stack, weights, Q)
    change = A.new_zeros(stack.shape)
    optimizer = torch.optim.Adam([change], lr=lr)
    for _ in range(iterations):
        change.grad = gradient(change @ A.mT) @ A
        optimizer.step()
    return change


def adam_tasks(stack: LowRank, weights: Tensor, Q: Tensor, *, iterations: int, lr: float) -> Tensor:
    """A modification a task, `[task, out, in]`, by one Adam from 0, as `adam`."""
    A, gradient = stack.total().A, _gradient(stack, weights, Q)
    changes, total = A.new_zeros(len(stack), *stack.shape), weights.sum()
    if total == 0:
        return changes
    shares = (weights / total)[:, None, None]
    optimizer = torch.optim.Adam([changes], lr=lr)
    for _ in range(iterations):
        together = (shares * changes).sum(0)  # the one modification with the same effect
        changes.grad = shares * (gradient(together @ A.mT) @ A)
        optimizer.step()
    return changes


def descent(stack: LowRank, weights: Tensor, Q: Tensor, *, iterations: int, lr: float) -> LowRank:
    """The modification by gradient descent, as coefficients `[out, R]` on the rows of all A."""
    A, gradient = stack.total().A, _gradient(stack, weights, Q)
    kernel = A @ A.mT
    # of every row, the trace bounds the largest curvature
    rows = row_products(stack).diagonal(dim1=-2, dim2=-1).sum(-1)
    curvature = 2 * weights.sum() ** 2 * rows.max()
    step = lr / curvature if curvature > 0 else 0.0
    change = A.new_zeros(stack.shape[0], len(A))
    for _ in range(iterations):
        change -= step * gradient(change @ kernel)
    return LowRank(A, change)


def _gradient(stack: LowRank, weights: Tensor, Q: Tensor) -> Callable[[Tensor], Tensor]:
    """`change @ A.T [out, R]` -> coefficients `[out, R]` on A's rows of the projected gradient."""
    B, residuals = stack.total().B, _residuals(stack, weights)
    ranks = torch.tensor(stack.ranks, device=B.device)

    def gradient(images: Tensor) -> Tensor:
        rows = residuals(images).repeat_interleave(ranks, dim=1)
        coefficients = -2 * weights.sum() * rows * B
        return coefficients - Q @ (Q.mT @ coefficients)

    return gradient


def _residuals(stack: LowRank, weights: Tensor) -> Callable[[Tensor], Tensor]:
    """`change @ A.T [out, R]` -> `<delta_j, delta_j - merged>` of every row, `[out, task]`."""
    B, products = stack.total().B, row_products(stack)
    start = products.diagonal(dim1=-2, dim2=-1) - products @ weights
    alive = weights > 0
    owner = torch.block_diag(*(B.new_ones(rank, 1) for rank in stack.ranks))  # [R, task]
    return lambda images: alive * (start - weights.sum() * (images * B) @ owner)
