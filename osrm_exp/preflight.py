"""What the real network and its adapters say of a cell before anything is trained.

`rehearsal` tries a cell's functions on a tiny network. Here every two adapters must share a module,
and every module must have the statistics that are asked of it: the architecture says the first, one
batch through the checkpoint whether they can be collected.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from itertools import combinations

import torch
from transformers import PreTrainedModel

from osrm_exp import needs
from osrm_exp.adapter import Adapter
from osrm_exp.artifacts import Workshop
from osrm_exp.model import adapted_modules, load_backbone, skeleton
from osrm_exp.spec import Cell, Model, Need, Task, Tuning
from osrm_exp.statistics.layout import check_inputs
from osrm_exp.tasks import data

Asked = tuple[str, Collection[str]]  # who asks for statistics, and of which tasks' adapters


def check(cell: Cell, given: Mapping[str, Adapter], workshop: Workshop) -> None:
    """Whether a cell's adapters will fit together, and its statistics can be had.

    Args:
        cell: what will be run.
        given: the adapters from elsewhere, by task.
        workshop: where; the checkpoint is loaded only if it holds an adapter too few.

    Raises:
        ValueError: two adapters without a module in common, a module that no block names though a
            statistic of it is asked for, or one whose inputs cannot be told apart by sample.
    """
    modules = _modules(cell, given)
    _check_shared(modules)
    _check_statistics(cell, modules, [*_by_init(cell, f"init={cell.names['init']}"), *_asked(cell)])
    if cell.heads:
        arm = cell.model_copy(update={"init": cell.heads.init, "tuning": cell.heads.tuning})
        asked = _by_init(arm, f"heads={cell.heads.name}")
        _check_statistics(arm, _modules(arm, given), asked)
    if cell.diagnostics:
        _check_alike(modules)
    later = any(_of_inputs(one) for one in cell.merge.statistics.values()) or cell.diagnostics
    if later and not all(workshop.store.has(one) for one in needs.fine_tunes(cell)):
        _check_batch(cell.model, cell.tasks[0], cell.tuning, workshop.device)


def _modules(cell: Cell, given: Mapping[str, Adapter]) -> dict[str, Collection[str]]:
    """The modules that every task's adapter has, by task."""
    net = _net(cell)
    return {
        task.name: given[task.name].updates.keys() if task.name in given
        else adapted_modules(net, cell.model, cell.tuning.of(task.name).lora.blocks).keys()
        for task in cell.tasks
    }  # fmt: skip


def _check_statistics(
    cell: Cell, modules: Mapping[str, Collection[str]], asked: Iterable[Asked]
) -> None:
    seen = adapted_modules(_net(cell), cell.model, cell.tuning.lora.blocks)
    for where, of in asked:
        _check_blocks(where, {task: modules[task] for task in modules if task in of}, seen, cell)


def _net(cell: Cell) -> PreTrainedModel:
    return skeleton(cell.model, cell.tasks[0].outputs, auto=cell.tasks[0].kind.auto)


def _by_init(cell: Cell, name: str) -> list[Asked]:
    trained = {task.name for task in cell.tasks} - cell.given.keys()
    return [(name, trained)] if cell.init.statistics else []


def _asked(cell: Cell) -> list[Asked]:
    """Who asks for statistics of modules after training, and of which tasks' adapters."""
    every = [task.name for task in cell.tasks]
    asked: list[Asked] = []
    if any(need.of != "suite" for need in cell.merge.statistics.values()):
        asked.append((f"merge={cell.names['merge']}", every))
    if cell.diagnostics:
        asked.append(("diagnostics", every))
    return asked


def _of_inputs(need: Need) -> bool:
    """Whether a statistic is of what modules are fed, not of the network's answers alone."""
    return need.of != "suite" or getattr(need.call.function, "of_inputs", False)


def _check_shared(modules: Mapping[str, Collection[str]]) -> None:
    for (one, first), (other, second) in combinations(modules.items(), 2):
        if not set(first) & set(second):
            raise ValueError(
                f"the adapters of {one} ({min(first)}, …) and {other} ({min(second)}, …) share no "
                "module: there is nothing to merge"
            )


def _check_blocks(
    where: str, modules: Mapping[str, Collection[str]], seen: Collection[str], cell: Cell
) -> None:
    for task, names in modules.items():
        if unseen := [name for name in names if name not in seen]:
            raise ValueError(
                f"the adapter of {task} has {unseen[0]}, and {where} asks for a statistic of its "
                f"inputs: name its block in tuning.lora.blocks={list(cell.tuning.lora.blocks)}"
            )


def _check_alike(modules: Mapping[str, Collection[str]]) -> None:
    (one, first), *others = modules.items()
    for other, second in others:
        if differ := sorted(set(first) ^ set(second)):
            raise ValueError(
                f"{one} and {other} do not both adapt {differ[0]}, and diagnostics compare all "
                "tasks module by module: diagnostics=none"
            )


@lru_cache(maxsize=8)
def _check_batch(model: Model, task: Task, tuning: Tuning, device: torch.device) -> None:
    """Runs two rows through the checkpoint, which is freed again; once in a process."""
    rows = data.load(task, model, tuning.max_length, tuning.truncation_side)
    (batch,) = rows.batches("train", 2, 2)
    net = load_backbone(model, task.outputs, precision=tuning.precision, auto=task.kind.auto)
    modules = list(adapted_modules(net, model, tuning.lora.blocks))
    check_inputs(net.eval().to(device), modules, batch)
