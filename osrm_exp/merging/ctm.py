"""Compress then merge: any rule, applied in one pair of small subspaces that all tasks share.

The result has the rank of one adapter by construction, where truncating a merge afterwards would
lose most of it. Zheng et al., ICML 2026, arXiv 2606.03723.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from osrm_exp.lazy import Lazy
from osrm_exp.lora import RANK_CUT, Cores, Dense, Lost, LowRank, Update, framed, stack
from osrm_exp.merging.elementwise import ties
from osrm_exp.merging.linear import task_arithmetic
from osrm_exp.merging.triplets import trained

CLOSER = 4  # times: a power that comes less far is not worth its product
ROUNDING = 1e-13  # share of a gram by which an invariant subspace may miss its image


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
    method.__wrapped__ = rule  # type: ignore[attr-defined]  # whose annotations are checked too
    method.__name__ = f"ctm_{rule.__name__}"
    method.__doc__ = f"Compress the tasks, then merge their cores by `{rule.__name__}`."
    return method


def compress(
    updates: LowRank, rank: int | None, beta: float, sweeps: int, tol: float
) -> tuple[Cores, Lost]:
    """Common subspaces of all tasks, `delta_t ~ U @ core_t @ V.T` with `core [task, rank, rank]`.

    The subspaces fit the deltas with their norms drawn together, the cores are the deltas' own.
    What is lost is told of the tasks' sum.
    """
    left, tasks, right = framed(updates)
    norms = torch.stack([task.delta.norm() for task in tasks])
    own = trained(norms, RANK_CUT)  # an untrained adapter must not be blown up
    scale = torch.where(own, beta + (1 - beta) * norms[own].sum() / own.sum() / norms, 1)
    small = stack(tasks)
    width = min(max(updates.ranks) if rank is None else rank, *small.shape)
    U, V = subspaces(replace(small, B=small.B * scale[:, None, None]), width, sweeps, tol)
    core, total = (U.mT @ small.B) @ (small.A @ V), small.total().delta
    lost = (total - U @ core.sum(0) @ V.mT).norm().item(), total.norm().item()
    return Cores(left @ U, core, right @ V), lost


def subspaces(small: LowRank, rank: int, sweeps: int, tol: float) -> tuple[Tensor, Tensor]:
    """Orthonormal U `[p, rank]`, V `[q, rank]` that keep most of `sum_t ||U.T delta_t V||^2`.

    Tucker-2 by alternation from the HOSVD, U first; columns by decreasing strength.
    """
    left, right = small.B.mT.contiguous(), small.A
    U, V = leading(_gram(left, right), rank), leading(_gram(right, left), rank)
    for _ in range(sweeps):
        before = U, V
        U = leading(_gram(left, right @ V), rank, U)
        V = leading(_gram(right, left @ U), rank, V)
        if max(_turn(old, new) for old, new in zip(before, (U, V))) <= tol:
            break
    return U, V


def _gram(side: Tensor, other: Tensor) -> Tensor:
    """`sum_t X_t.T @ X_t [p, p]` of `X_t = other_t.T [*, rank] @ side_t [rank, p]`."""
    return (other @ other.mT @ side).flatten(0, 1).mT @ side.flatten(0, 1)


def leading(gram: Tensor, rank: int, near: Tensor | None = None) -> Tensor:
    """Eigenvectors `[p, rank]` of a gram's largest eigenvalues, the largest first.

    By powers of vectors that are `near` them, to rounding and with a proof that no others are
    larger; by a decomposition of the whole where there are none or that does not succeed.
    """
    found = _invariant(gram, near.mT) if near is not None and rank else None
    return torch.linalg.eigh(gram)[1].flip(-1)[:, :rank] if found is None else found.mT


def _invariant(gram: Tensor, rows: Tensor) -> Tensor | None:
    """`leading` from `rows [rank, p]`, as rows, as long as each power comes much closer."""
    missed = torch.tensor(math.inf)
    while True:
        image = rows @ gram
        inner = image @ rows.mT
        before, missed = missed, (image - inner @ rows).norm()
        if missed <= ROUNDING * inner.norm():
            values, vectors = torch.linalg.eigh(inner)
            found = vectors.mT.flip(0) @ rows
            return found if _none_larger(gram, values.flip(0), found) else None
        if not missed < before / CLOSER:
            return None
        rows = torch.linalg.qr(image.mT).Q.mT


def _none_larger(gram: Tensor, values: Tensor, rows: Tensor) -> bool:
    """Whether all eigenvalues of a gram but these, of the eigenvectors `rows`, are less."""
    if gram.square().sum() - values.square().sum() < values[-1] ** 2:
        return True  # all others together are
    above = torch.diag(values[-1].expand(len(gram))) - gram + rows.mT * values @ rows
    return not torch.linalg.cholesky_ex(above).info


def _turn(old: Tensor, new: Tensor) -> float:
    """How far a subspace turned: the norm of the sines of its angles."""
    return (new - old @ (old.mT @ new)).norm().item()


ctm_ta = compressed(task_arithmetic)
ctm_ties = compressed(ties)
