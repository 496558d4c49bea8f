"""Gradient descent on a family's tensors: AdaMerging's optimiser, and that of all its kin."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from tqdm import trange

from osrm_exp.search.family import Tensors
from osrm_exp.search.pieces import tensors_in
from osrm_exp.search.problem import Found, Problem
from osrm_exp.tasks.prompts import Batch

MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # Adam's, as torch names them
OFTEN = 20  # times as long as saving takes, between two saves


def adam(
    problem: Problem, /, *, steps: PositiveInt, lr: PositiveFloat, batch_size: PositiveInt,
    batches: PositiveInt, clamp: Literal["forward", "after"],
) -> Found:  # fmt: skip
    """The tensors after so many steps of Adam on the objective, summed over tasks and batches.

    What is free starts where the family says, and is taken as it stands at the end. The rows of a
    step are the next ones of an endless sequence of permutations of the split, drawn by the seed.

    Args:
        problem: with an objective.
        steps: of Adam, with its usual betas.
        lr: its step size.
        batch_size: rows of a batch.
        batches: a task and step.
        clamp: keep what is free within the family's limits as it is used (`forward`, where a number
            beyond them has no gradient any more) or after every step (`after`).

    Raises:
        ValueError: a family without a gradient, or a step that ended in no number.
    """
    names, limits = list(problem.family.start), problem.family.limits
    free = followed(problem)
    optimizer = torch.optim.Adam(free.values(), lr=lr)
    done = _restored(problem, free, optimizer)
    for step in trange(done, steps, initial=done, total=steps, desc="search", leave=False, delay=1):
        start = time.perf_counter()
        optimizer.zero_grad()
        used = free
        if clamp == "forward" and limits:
            used = {name: tensor.clamp(*limits) for name, tensor in free.items()}
        found = problem.gradient(used, partial(drawn, problem, step, batch_size, batches))
        optimizer.step()
        if clamp == "after" and limits:
            with torch.no_grad():
                for tensor in free.values():
                    tensor.clamp_(*limits)
        check_finite(problem, free, step)
        seconds = round(time.perf_counter() - start, 4)
        problem.history.append({"step": step, "tasks": found, "seconds": seconds})
        _save(problem, names, free, optimizer, last=step + 1 == steps)
    kept = {name: tensor.detach() for name, tensor in free.items()}
    if clamp == "forward" and limits:
        kept = {name: tensor.clamp(*limits) for name, tensor in kept.items()}
    return Found({}, kept, None)


def followed(problem: Problem) -> Tensors:
    """Where the family starts, with a gradient.

    Raises:
        ValueError: what it makes of its tensors is chosen, or computed from plain numbers.
    """
    start = problem.family.start
    if start and all(tensor.is_floating_point() for tensor in start.values()):
        free = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
        updates, heads, _ = problem.family.outcome(problem.settings, free)
        if any(one.requires_grad for part in (updates, heads) for one in tensors_in(part)):
            return free
    raise ValueError(
        f"merge={problem.cell.names['merge']} has nothing that a gradient could move in "
        f"{type(problem.family).__name__}: take an optimiser that compares scores (search=optuna, "
        "cmaes)"
    )


def drawn(problem: Problem, step: int, size: int, count: int, index: int) -> Sequence[Batch]:
    """The batches of a task at a step, from the split that the objective names."""
    data = problem.bench.data[index]
    rows = getattr(data, problem.split)[: problem.rows]
    size = min(size, len(rows))
    places = range(step * count * size, (step + 1) * count * size)
    orders: dict[int, Tensor] = {}
    chosen = []
    for place in places:
        epoch = place // len(rows)
        if epoch not in orders:
            seed = (problem.seed * 1009 + index) * 100_003 + epoch
            orders[epoch] = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        chosen.append(rows[int(orders[epoch][place % len(rows)])])
    return [data.collate(chosen[i : i + size]) for i in range(0, len(chosen), size)]


def check_finite(problem: Problem, free: Tensors, step: int) -> None:
    """Whether a step ended anywhere.

    Raises:
        ValueError: it did not.
    """
    if not all(tensor.isfinite().all() for tensor in free.values()):
        raise ValueError(
            f"merge={problem.cell.names['merge']}: what is searched is not finite after step "
            f"{step}: a lower lr of its search helps"
        )


def _restored(problem: Problem, free: Tensors, optimizer: torch.optim.Adam) -> int:
    """Puts back what an interrupted search had saved; how many steps it had made."""
    found = problem.history.restored()
    for place, tensor in enumerate(free.values() if found else ()):
        tensor.data.copy_(found[f"{place}.value"])
        optimizer.state[tensor] = {moment: found[f"{place}.{moment}"] for moment in MOMENTS}
    return len(problem.history.entries)


_saved: dict[Path, tuple[float, float]] = {}


def _save(
    problem: Problem, names: list[str], free: Tensors, optimizer: torch.optim.Adam, last: bool
) -> None:
    """Saves where the search stands, as often as a small part of its time allows."""
    folder = problem.history.folder
    when, cost = _saved.get(folder, (0.0, 0.0))
    start = time.perf_counter()
    if not last and start - when < OFTEN * cost:
        return
    state: Tensors = {}
    for place, name in enumerate(names):
        tensor = free[name]
        own = optimizer.state[tensor]
        state |= {f"{place}.{moment}": own[moment] for moment in MOMENTS}
        state[f"{place}.value"] = tensor.detach()
    problem.history.save(state)
    end = time.perf_counter()
    _saved[folder] = (end, end - start)
