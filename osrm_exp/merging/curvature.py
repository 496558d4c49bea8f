"""Fisher merging: experts averaged by the curvature of their losses, diagonal or Kronecker.

Weights of single entries destroy low rank, so the results are dense and computed on access, one
module at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from osrm_exp.lazy import Lazy
from osrm_exp.lora import Dense, LowRank, Update
from osrm_exp.merging.contract import checked
from osrm_exp.merging.geometry import ratio_weights


def fisher(
    updates: Mapping[str, LowRank],
    /,
    fisher: Mapping[str, Tensor],
    *,
    weights: Sequence[float] | None,
    normalize: bool,
    floor: float,
    flooring: str,
) -> Mapping[str, Update]:
    """`sum_t c_t F_t delta_t / sum_t c_t F_t`, entry by entry: dense, computed on access.

    Matena & Raffel, NeurIPS 2022, arXiv 2111.09832. Entries that no task weighs get the mean.

    Args:
        updates: a stack a module.
        fisher: `[task, out, in]` a module, diagonal Fisher of the adapted weights `W0 + delta_t`.
        weights: `c`, one a task, null for equal; only their ratios matter.
        normalize: divides a task's Fisher by its norm over all modules, taken before the floor.
        floor: least Fisher of an entry.
        flooring: how it is put in: the larger of the two for `all` tasks or for the `first` alone,
            or `add`ed to every Fisher and to the norm as MergeLM does.
    """
    if flooring not in ("all", "first", "add"):
        raise ValueError(f"flooring is {flooring!r}: expected all, first or add")
    tasks = len(next(iter(updates.values())))
    given = Lazy(updates, lambda m: checked("fisher", m, fisher[m], tasks, *updates[m].shape))
    shares = torch.tensor(ratio_weights(weights, tasks), dtype=torch.float64)
    if normalize:
        squares = reduce(add, (given[m].double().pow(2).sum((1, 2)) for m in updates))
        norms = squares.sqrt().to(shares) + (floor if flooring == "add" else 0)
        shares = shares / torch.where(norms > 0, norms, 1)  # a task without Fisher has its floor
    shares = shares / shares.max()  # keeps tiny Fishers and their weights far from underflow

    def compute(module: str) -> Dense:
        stack = updates[module]
        return Dense(_fisher_mean(stack, given[module], shares.tolist(), floor, flooring))

    return Lazy(updates, compute)


def _fisher_mean(
    stack: LowRank, values: Tensor, shares: list[float], floor: float, flooring: str
) -> Tensor:
    total = weight = plain = torch.zeros(())
    for t, (update, share) in enumerate(zip(stack.unstack(), shares)):
        F, delta = values[t].to(stack.A), update.delta
        if flooring == "add":
            F = F + floor
        elif flooring == "all" or t == 0:
            F = F.clamp(min=floor)
        total, weight = total + share * F * delta, weight + share * F
        plain = plain + delta / len(stack)
    return torch.where(weight > 0, total / weight, plain)


def mats(
    updates: Mapping[str, LowRank],
    /,
    gram: Mapping[str, Tensor],
    output_gram: Mapping[str, Tensor],
    *,
    scaling: float,
    iterations: int,
    tol: float,
) -> Mapping[str, Update]:
    """`sum_t O_t D G_t = sum_t O_t delta_t G_t` by conjugate gradients: dense, computed on access.

    The Fisher average with Kronecker-factored Fishers in place of diagonal ones. Tam, Bansal &
    Raffel, TMLR 2024, arXiv 2312.04339.

    Args:
        updates: a stack a module.
        gram: `[task, in, in]` a module, `G`, the second moment of its inputs.
        output_gram: `[task, out, out]` a module, `O`, that of its outputs' gradients.
        scaling: the start is task arithmetic with this coefficient.
        iterations: at most so many; the early stop is part of the method, which never solves fully.
        tol: stops where the residual is below this share of the right-hand side.
    """

    def compute(module: str) -> Dense:
        stack = updates[module]
        rows, columns, tasks = *stack.shape, len(stack)
        inner = checked("gram", module, gram[module], tasks, columns, columns)
        outer = checked("output_gram", module, output_gram[module], tasks, rows, rows)
        exact = stack.to(torch.float64)
        inner, outer = inner.to(exact.A), outer.to(exact.A)
        solved = _solve_kronecker(exact, inner, outer, scaling, iterations, tol)
        return Dense(solved.to(stack.A))

    return Lazy(updates, compute)


def _solve_kronecker(
    stack: LowRank, inner: Tensor, outer: Tensor, scaling: float, iterations: int, tol: float
) -> Tensor:
    def apply(D: Tensor) -> Tensor:
        return reduce(add, (o @ D @ g for o, g in zip(outer, inner)))

    tasks = stack.unstack()
    target = reduce(add, ((o @ u.B) @ (u.A @ g) for o, u, g in zip(outer, tasks, inner)))
    D = scaling * reduce(add, (u.delta for u in tasks))
    residual = direction = target - apply(D)
    square, enough = residual.square().sum(), (tol * target.norm()) ** 2
    for _ in range(iterations):
        if square <= enough:
            break
        image = apply(direction)
        step = square / (direction * image).sum()
        D, residual = D + step * direction, residual - step * image
        previous, square = square, residual.square().sum()
        direction = residual + square / previous * direction
    return D
