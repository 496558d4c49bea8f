"""ProDistill: coefficients found block by block, each block taught by the experts' own.

Xu et al., ICML 2025, arXiv 2502.12706; code
JingXuTHU/Scalable_Model_Merging_with_Progressive_Layerwise_Distillation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from transformers import Cache

from osrm_exp.lora import Update
from osrm_exp.placing import applied
from osrm_exp.search.family import Tensors
from osrm_exp.search.gradient import check_finite
from osrm_exp.search.problem import Found, Problem
from osrm_exp.statistics.suite import LAYER, blocks_of, experts

Call = tuple[tuple, dict[str, Any]]  # what a block was called with


def prodistill(
    problem: Problem, /, *, samples: PositiveInt, epochs: PositiveInt, lr: PositiveFloat,
    batch_size: PositiveInt,
) -> Found:  # fmt: skip
    """Coefficients by which every merged block answers as the experts' blocks do.

    In the order of the network, a block's coefficients are trained by Adam so that the block, fed
    by what the merged blocks before it make of a task's inputs, gives what the task's expert gives,
    fed by its own: the squared error, summed over a token's features and averaged over tokens that
    are no padding. Blocks behind it have no say. An interrupted search goes on with its block.

    Args:
        problem: its family gives coefficients by module; its objective names split and rows alone.
        samples: unlabeled rows of a task.
        epochs: passes over them, a block.
        lr: of Adam.
        batch_size: rows of a step.

    Raises:
        ValueError: coefficients that several blocks share.
    """
    bench = problem.bench
    free = {name: tensor.clone() for name, tensor in problem.family.start.items()}
    blocks = _blocks(problem)
    data = [_inputs(problem, rows, batch_size, samples) for rows in bench.data]
    names = [task.name for task in problem.cell.tasks]
    free.update(problem.history.restored())
    done = len(problem.history.entries)  # one a block
    for number, block in enumerate(blocks[done:], done):
        start = time.perf_counter()
        lost = _train(problem, free, block, data, epochs, lr)
        check_finite(problem, {name: free[name] for name in block}, number)
        seconds = round(time.perf_counter() - start, 4)
        entry = {"block": number, "tasks": dict(zip(names, lost)), "seconds": seconds}
        problem.history.append(entry)
        problem.history.save(free)
    return Found({}, free, None)


def _blocks(problem: Problem) -> list[list[str]]:
    """The adapted modules of every block, all of which have coefficients of their own."""
    free, updates = problem.family.start, problem.bench.updates
    if not free or any(name not in updates for name in free):
        raise ValueError("prodistill learns block by block: take family.groups=module")
    blocks = blocks_of(problem.bench.net, updates)
    within = {module for block in blocks for module in block}
    if outside := sorted(updates.keys() - within):
        raise ValueError(f"prodistill: {outside[0]} lies in no numbered block of the network")
    return blocks


def _inputs(problem: Problem, rows: Any, size: int, samples: int) -> list[dict[str, Tensor]]:
    """A task's batches without labels, where the network lies."""
    device = problem.bench.net.device
    return [
        {key: value.to(device) for key, value in batch.items() if key != "labels"}
        for batch in rows.batches(problem.split, size, samples)
    ]


def _train(
    problem: Problem, free: Tensors, modules: Sequence[str], data: Sequence[Sequence[Any]],
    epochs: int, lr: float,
) -> list[float]:  # fmt: skip
    """Trains one block in place; every task's error in the last epoch."""
    bench, layer = problem.bench, LAYER.match(modules[0])
    assert layer is not None
    path = layer[0].rstrip(".")
    net, block = bench.net, bench.net.get_submodule(path)
    merged = dict(problem.family.outcome(problem.settings, free).updates)
    calls, goals = [], []
    for index, expert in enumerate(experts(bench)):
        calls.append([_seen(net, block, merged, batch)[0] for batch in data[index]])
        goals.append([_seen(net, block, expert, batch)[1] for batch in data[index]])
    own = {module: free[module].clone().requires_grad_() for module in modules}
    optimizer = torch.optim.Adam(own.values(), lr=lr)
    lost: list[float] = []
    for _ in range(epochs):
        lost = [0.0] * len(calls)
        for index, (inputs, wanted) in enumerate(zip(calls, goals)):
            for (args, keywords), goal, batch in zip(inputs, wanted, data[index]):
                problem.tick()
                updates = problem.family.outcome(problem.settings, {**free, **own}).updates
                inner = {m.removeprefix(f"{path}."): updates[m] for m in modules}
                with applied(block, inner):
                    out = _first(block(*args, **keywords))
                real = batch["attention_mask"].to(out)
                error = ((out - goal).square().sum(-1) * real).sum() / real.sum()
                optimizer.zero_grad()
                error.backward()
                optimizer.step()
                lost[index] += error.item() / len(inputs)
    free.update({module: tensor.detach() for module, tensor in own.items()})
    return lost


@torch.no_grad()
def _seen(
    net: nn.Module, block: nn.Module, updates: Mapping[str, Update], batch: Mapping[str, Tensor]
) -> tuple[Call, Tensor]:
    """What a block is called with and what it answers, with updates in place."""
    with applied(net, updates), _watched(block) as seen:
        net(**batch)
    return seen[0]


@contextmanager
def _watched(block: nn.Module) -> Iterator[list[tuple[Call, Tensor]]]:
    seen: list[tuple[Call, Tensor]] = []
    hook = block.register_forward_hook(
        lambda _, args, keywords, out: seen.append(((args, _stateless(keywords)), _first(out))),
        with_kwargs=True,
    )
    try:
        yield seen
    finally:
        hook.remove()


def _stateless(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """A block's keywords without the cache of a decoder, which every call would add to."""
    return {k: None if isinstance(v, Cache) else v for k, v in keywords.items()}


def _first(out: Any) -> Tensor:
    """A block's hidden states, behind which some return more."""
    return out if torch.is_tensor(out) else out[0]
