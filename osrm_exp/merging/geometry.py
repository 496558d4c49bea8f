"""Means along the sphere: SLERP, the Karcher mean and model stock, of deltas and not of weights.

The published tools interpolate whole weights, which also rescales the base model. Applied to the
deltas each of these rules is a linear combination whose coefficients depend on the tasks' inner
products alone. So all of them need a `[task, task]` matrix a module, and the result is exact at
rank `R`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor

from osrm_exp.lora import LowRank, Update

SAME_POINT = 1e-7  # radians, what rounding leaves of the arc between equal directions


def slerp(
    updates: Mapping[str, LowRank], /, *, t: float, dot_threshold: float
) -> Mapping[str, Update]:
    """Two deltas interpolated along the arc between their directions, module by module.

    Coefficients `sin((1 - t) w) / sin w` and `sin(t w) / sin w` on the deltas themselves, `w` the
    angle between them; the straight line where `|cos w|` exceeds `dot_threshold`. Shoemake, 1985;
    mergekit's `slerp`. One task is returned as it is.

    Raises:
        ValueError: more than two tasks.
    """
    return {module: _slerp(stack, t, dot_threshold) for module, stack in updates.items()}


def _slerp(stack: LowRank, t: float, dot_threshold: float) -> LowRank:
    if len(stack) == 1:
        return stack.total()
    if len(stack) > 2:
        raise ValueError(f"slerp joins two tasks, got {len(stack)}: use karcher for more")
    cosine = _cosines(inner_products(stack))[0, 1]
    line = cosine.new_tensor([1 - t, t])
    if cosine.abs() > dot_threshold:
        return combine(stack, line)
    angle = cosine.acos()
    return combine(stack, (line * angle).sin() / angle.sin())


def karcher(
    updates: Mapping[str, LowRank],
    /,
    *,
    max_iter: int,
    tol: float,
    weights: Sequence[float] | None,
) -> Mapping[str, Update]:
    """The point of the unit sphere nearest to all directions along arcs, times the mean norm.

    Karcher, 1977; mergekit's `karcher`. Tasks with a zero delta have no direction: they count in
    the mean norm only. Directions that cancel have no centre: the result is zero.

    Args:
        updates: a stack a module.
        max_iter: steps of the fixed-point iteration, which starts at the normalised mean.
        tol: stops when a step, in radians, is shorter.
        weights: one a task, null for equal; only their ratios matter.
    """
    return {module: _karcher(s, max_iter, tol, weights) for module, s in updates.items()}


def _karcher(stack: LowRank, max_iter: int, tol: float, weights: Sequence[float] | None) -> LowRank:
    """The iteration in coordinates: `mean` holds the coefficients `[task]` on the unit deltas."""
    products = inner_products(stack)
    norms = products.diagonal().sqrt()
    share = products.new_tensor(ratio_weights(weights, len(stack)))
    scale = share @ norms / share.sum()
    cosines, exists = _cosines(products), norms > 0
    if not exists.any():
        return combine(stack, share * 0)
    share = share * exists / share[exists].sum()
    mean = share
    if (
        mean @ cosines @ mean < max(tol, SAME_POINT) ** 2
    ):  # directions that cancel have no centre, and no order of the tasks shall choose one
        return combine(stack, share * 0)
    mean = mean / (mean @ cosines @ mean).sqrt()
    for _ in range(max_iter):
        dots = (cosines @ mean).clamp(-1, 1)
        angles = dots.acos()
        # no arc leads to the mean itself, and no single one to its antipode
        unique = angles.sin() > max(tol, SAME_POINT)
        step = share * torch.where(unique, angles / angles.sin(), 0)
        step = step - (step @ dots) * mean
        length = (step @ cosines @ step).clamp(min=0).sqrt()
        if length < tol:
            break
        mean = length.cos() * mean + length.sin() / length * step
        mean = mean / (mean @ cosines @ mean).sqrt()
    return combine(stack, scale * torch.where(exists, mean / norms, 0))


def model_stock(
    updates: Mapping[str, LowRank], /, *, filter_wise: bool, clamp: bool
) -> Mapping[str, Update]:
    """The mean delta, shortened by how little the tasks agree.

    `ratio * mean` with `ratio = T c / (1 + (T - 1) c)` and `c` the mean pairwise cosine. Jang et
    al., ECCV 2024, with mergekit's mean over pairs for more than two models.

    Args:
        updates: a stack a module.
        filter_wise: one cosine a row of the delta (an output unit) in place of one a module.
        clamp: cosines below 0 count as 0, else tasks that oppose each other turn the mean around.
    """
    return {module: _model_stock(s, filter_wise, clamp) for module, s in updates.items()}


def _model_stock(stack: LowRank, filter_wise: bool, clamp: bool) -> LowRank:
    tasks = len(stack)
    mean = combine(stack, stack.A.new_full((tasks,), 1 / tasks))
    if tasks == 1:
        return mean
    cosines = _cosines(row_products(stack) if filter_wise else inner_products(stack))
    pairs = torch.ones(tasks, tasks, dtype=torch.bool).triu(1)
    cosine = cosines[..., pairs].mean(-1)
    if clamp:
        cosine = cosine.clamp(min=0)
    below = 1 + (tasks - 1) * cosine  # 0 only where the deltas sum to 0
    ratio = torch.where(below == 0, 0, tasks * cosine / below)
    return LowRank(mean.A, mean.B * ratio.reshape(-1, 1).to(mean.B))


def inner_products(stack: LowRank) -> Tensor:
    """Frobenius products `<delta_i, delta_j>` as `[task, task]`, float64, without the deltas."""
    together = stack.total().to(torch.float64)
    units = (together.B.mT @ together.B) * (together.A @ together.A.mT)  # of rank-1 units, [R, R]
    owner = _owner(stack)
    return owner @ units @ owner.mT


def row_products(stack: LowRank) -> Tensor:
    """Products of the deltas' rows as `[out, task, task]`, float64, without the deltas."""
    together, owner = stack.total().to(torch.float64), _owner(stack)
    kernel = together.A @ together.A.mT
    rows = [
        ((u.B.double() @ kernel[block]) * together.B) @ owner.mT
        for u, block in zip(stack.unstack(), stack.blocks)
    ]
    return torch.stack(rows, dim=1)


def combine(stack: LowRank, coefficients: Tensor) -> LowRank:
    """`sum_t coefficients[t] * delta_t`, exact at rank `R`."""
    return LowRank(stack.A, stack.B * coefficients[:, None, None].to(stack.B), stack.ranks).total()


def task_weights(weights: Sequence[float] | None, tasks: int) -> list[float]:
    """One weight a task, 1 where none are given.

    Raises:
        ValueError: as many weights as tasks are needed.
    """
    if weights is None:
        return [1.0] * tasks
    if len(weights) != tasks:
        raise ValueError(f"{len(weights)} weights for {tasks} tasks: give one a task, or null")
    if not all(isfinite(weight) for weight in weights):
        raise ValueError(f"the weights {list(weights)} are not all finite: give one number a task")
    return [float(weight) for weight in weights]


def ratio_weights(weights: Sequence[float] | None, tasks: int) -> list[float]:
    """One weight a task, where only their ratios matter.

    Raises:
        ValueError: they sum to zero.
    """
    given = task_weights(weights, tasks)
    if abs(sum(given)) <= 1e-9 * sum(map(abs, given)):
        raise ValueError(
            f"the weights {given} sum to zero, and only their shares of the sum count: change one"
        )
    return given


def _owner(stack: LowRank) -> Tensor:
    """Which task each of the `R` rank-1 units belongs to, one-hot `[task, R]`."""
    owner = torch.zeros(len(stack), sum(stack.ranks), dtype=torch.float64, device=stack.A.device)
    for row, block in zip(owner, stack.blocks):
        row[block] = 1
    return owner


def _cosines(products: Tensor) -> Tensor:
    """Inner products `[*, task, task]` as cosines; one with a zero vector is 0."""
    norms = products.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    scale = norms[..., None] * norms[..., None, :]
    return torch.where(scale > 0, products / scale, 0).clamp(-1, 1)
