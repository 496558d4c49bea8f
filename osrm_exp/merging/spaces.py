"""Spaces: the coordinates in which a rule combines the tasks' updates.

A space turns `{module: LowRank}` into stacks of coordinates `[task, m, n]`, dense or kept as
factors, and lifts what a rule made of them back to updates. `@in_space` makes a rule a method.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from osrm_exp import lora
from osrm_exp.lazy import Lazy, each
from osrm_exp.lora import Dense, LowRank, Update

ROUNDING = 1e-12  # share of a task's norm below which a float64 coordinate is rounding

Stacks = Mapping[str, LowRank | Dense]  # [task, m, n] a module, as factors or as numbers
Merged = Mapping[str, LowRank | Dense]  # [*, m, n] a module; `*`: nothing, or task


class Coordinates(NamedTuple):
    """All modules' coordinates in a space, and the way back."""

    stacks: Stacks
    lift: Callable[[Merged], Mapping[str, Update]]


def delta(updates: Mapping[str, LowRank]) -> Coordinates:
    """The weight changes themselves."""
    return Coordinates(updates, lambda merged: merged)


def knots(updates: Mapping[str, LowRank]) -> Coordinates:
    """`Z_t = U.T @ delta_t [k, in]`, U the left singular vectors of `[delta_1 … delta_T]`.

    As `delta_t` is `U Z_t` exactly, the coordinates keep the rank of the update. KnOTS, Stoica et
    al., ICLR 2025, arXiv 2410.19735, eq. 3; its code drops singular values below 1e-5, this one
    those below a share of the largest.
    """
    stacks, bases = {}, {}
    for module, update in updates.items():
        U = _left_singular(update)
        coordinates = _without_rounding(U.mT @ update.B.double())
        stacks[module] = LowRank(update.A, coordinates.to(update.B), update.ranks)
        bases[module] = U.to(update.B)

    return Coordinates(stacks, lambda merged: each(lambda m, Z: Z.lifted(bases[m]), merged))


def _left_singular(update: LowRank) -> Tensor:
    """Left singular vectors `[out, k]` of all tasks' deltas side by side, from `[B_t L_t]` with
    `A_t = L_t Q_t.T`, which has the same singular values."""
    columns = [u.B.double() @ lora.qr(u.A.mT)[1].mT for u in update.unstack()]
    return lora.basis(torch.cat(columns, dim=1))


def core(updates: Mapping[str, LowRank]) -> Coordinates:
    """`C_t = U.T @ delta_t @ V`, U and V the singular bases of `[B_1 … B_T]` and `[A_1; …; A_T]`.

    The bases belong to the factors as they were trained: an elementwise rule gives another result
    for `(3 B, A / 3)`. Core Space, Panariello et al., NeurIPS 2025, arXiv 2509.17786.
    """
    stacks, bases = {}, {}
    for module, update in updates.items():
        U, C, V = lora.cores(update)
        C = _without_rounding(C).to(update.A)
        stacks[module], bases[module] = Dense(C), lora.Cores(U.to(C), C, V.to(C))
    return Coordinates(stacks, lambda merged: each(lambda m, C: bases[m].lift(C.delta), merged))


def core_balanced(updates: Mapping[str, LowRank]) -> Coordinates:
    """`core` of balanced adapters, `B = U sqrt(S)`, `A = sqrt(S) Vh`: depends on deltas only."""
    return core(
        {
            module: lora.stack([u.balanced() for u in update.unstack()]).to(update.A)
            for module, update in updates.items()
        }
    )


def factors(updates: Mapping[str, LowRank]) -> Coordinates:
    """A and B apart, as the stacks `<module>.A` and `<module>.B`; what PEFT combines.

    A rule's `scaling` multiplies both, so it enters the delta squared.

    Raises:
        ValueError: the tasks' ranks differ within a module.
    """
    stacks: dict[str, Any] = {}
    for module, update in updates.items():
        if len(set(update.ranks)) > 1:
            raise ValueError(
                f"{module} has adapters of ranks {update.ranks}, whose factors cannot be added: "
                "choose the space delta, knots or core"
            )
        stacks |= {f"{module}.A": Dense(update.A), f"{module}.B": Dense(update.B)}

    def lift(merged: Merged) -> Mapping[str, Update]:
        return Lazy(updates, lambda m: LowRank(merged[f"{m}.A"].delta, merged[f"{m}.B"].delta))

    return Coordinates(stacks, lift)


def _without_rounding(coordinates: Tensor) -> Tensor:
    """Coordinates `[task, m, n]` in float64, with zeros for what is rounding alone.

    A task has none of a direction that it is orthogonal to, but 1e-17 of it would vote.
    """
    floor = ROUNDING * torch.linalg.matrix_norm(coordinates, keepdim=True)
    return coordinates.masked_fill(coordinates.abs() <= floor, 0)


SPACES = {space.__name__: space for space in (delta, knots, core, core_balanced, factors)}


def in_space(rule: Callable[..., Merged]) -> Callable[..., Mapping[str, Update]]:
    """The merge method that applies `rule(stacks, *, ...)` in the coordinates named by `space`."""

    @functools.wraps(rule)
    def method(updates: Mapping[str, LowRank], /, *, space: str, **hyperparameters):
        if space not in SPACES:
            raise ValueError(f"space {space!r} is unknown: choose one of {', '.join(SPACES)}")
        coordinates = SPACES[space](updates)
        return coordinates.lift(rule(coordinates.stacks, **hyperparameters))

    updates, space, *_ = inspect.signature(method, follow_wrapped=False).parameters.values()
    ruled = list(inspect.signature(rule).parameters.values())[1:]
    own = [updates, space.replace(annotation=str)]  # `wraps` took the rule's annotations
    method.__signature__ = inspect.Signature([*own, *ruled])  # type: ignore[attr-defined]
    return method
