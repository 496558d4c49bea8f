"""Compress then merge: any rule, applied in one pair of small subspaces that all tasks share.

The result has the rank of one adapter by construction, where truncating a merge afterwards would
lose most of it. Zheng et al., ICML 2026, arXiv 2606.03723.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from osrm_exp.lazy import Lazy
from osrm_exp.lora import RANK_CUT, Cores, Dense, Lost, LowRank, Update, cores
from osrm_exp.merging.elementwise import ties
from osrm_exp.merging.linear import task_arithmetic
from osrm_exp.merging.triplets import trained


def compressed(rule: Callable[..., Any]) -> Callable[..., Mapping[str, Update]]:
    """The merge method that applies `rule(stacks, *, ...)` to the tasks' compressed cores.

    `rule` may be a method made by `in_space`, whose rule is taken. The method's own settings:

        rank: width of the subspaces, null for the largest rank of a module's adapters.
        beta: 0 makes the tasks' norms equal while the subspaces are found, 1 leaves them.
        sweeps: of the alternation, at most; the released code stops much earlier.
        tol: stops when a sweep turns no subspace further than this.
    """
    rule = inspect.unwrap(rule)

    def method(
        updates: Mapping[str, LowRank],
        /,
        *,
        rank: int | None,
        beta: float,
        sweeps: int,
        tol: float,
        **hyperparameters,
    ) -> Mapping[str, Update]:
        found = {m: compress(stack, rank, beta, sweeps, tol) for m, stack in updates.items()}
        merged = rule({m: Dense(small.core) for m, (small, _) in found.items()}, **hyperparameters)

        def lift(module: str) -> LowRank:
            small, lost = found[module]
            return replace(small.lift(merged[module].delta), lost=lost).to(updates[module].dtype)

        return Lazy(found, lift)

    own = list(inspect.signature(method).parameters.values())[:-1]
    ruled = list(inspect.signature(rule).parameters.values())[1:]
    method.__signature__ = inspect.Signature([*own, *ruled])  # type: ignore[attr-defined]
    method.__name__ = f"ctm_{rule.__name__}"
    method.__doc__ = f"Compress the tasks, then merge their cores by `{rule.__name__}`."
    return method


def compress(
    stack: LowRank, rank: int | None, beta: float, sweeps: int, tol: float
) -> tuple[Cores, Lost]:
    """Common subspaces of all tasks, `delta_t ~ U @ core_t @ V.T` with `core [task, rank, rank]`.

    The subspaces fit the deltas with their norms drawn together, the cores are the deltas' own.
    What is lost is told of the tasks' sum.
    """
    full = cores(stack)
    norms = full.core.flatten(1).norm(dim=1)
    own = trained(norms, RANK_CUT)  # an untrained adapter must not be blown up
    scale = torch.where(own, beta + (1 - beta) * norms[own].sum() / own.sum() / norms, 1)
    width = min(max(stack.ranks) if rank is None else rank, *full.core.shape[1:])
    U, V = subspaces(full.core * scale[:, None, None], width, sweeps, tol)
    core, total = U.mT @ full.core @ V, full.core.sum(0)
    lost = (total - U @ core.sum(0) @ V.mT).norm().item(), total.norm().item()
    return Cores(full.U @ U, core, full.V @ V), lost


def subspaces(core: Tensor, rank: int, sweeps: int, tol: float) -> tuple[Tensor, Tensor]:
    """Orthonormal U `[p, rank]`, V `[q, rank]` that keep most of `sum_t ||U.T core_t V||^2`.

    Tucker-2 by alternation from the HOSVD, U first; columns by decreasing strength.
    """
    U, V = _leading(core, rank), _leading(core.mT, rank)
    for _ in range(sweeps):
        before = U, V
        U = _leading(core @ V, rank)
        V = _leading(core.mT @ U, rank)
        if max(_turn(old, new) for old, new in zip(before, (U, V))) <= tol:
            break
    return U, V


def _leading(parts: Tensor, rank: int) -> Tensor:
    """Leading left singular vectors `[p, rank]` of `[part_1 … part_T]`, `parts [task, p, k]`."""
    _, vectors = torch.linalg.eigh(torch.einsum("tik,tjk->ij", parts, parts))
    return vectors.flip(-1)[:, :rank]


def _turn(old: Tensor, new: Tensor) -> float:
    """How far a subspace turned: the norm of the sines of its angles."""
    return (new - old @ (old.mT @ new)).norm().item()


ctm_ta = compressed(task_arithmetic)
ctm_ties = compressed(ties)
