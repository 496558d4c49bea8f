"""The loaded network and the tasks: what a merge is scored on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from osrm_exp import needs
from osrm_exp.adapter import Adapter, stacked
from osrm_exp.artifacts import Workshop
from osrm_exp.artifacts.statistic import read_stacked
from osrm_exp.depth import Stacked, restacked
from osrm_exp.lora import LowRank, Result, Update
from osrm_exp.model import (
    load_backbone,
    new_heads,
)
from osrm_exp.placing import applied, place
from osrm_exp.spec import Cell, Model
from osrm_exp.tasks import data
from osrm_exp.tasks.metrics import Scored, scores
from osrm_exp.tasks.prompts import Batch

Heads = Sequence[Mapping[str, nn.Module]]  # of every task, by path
Network = Callable[..., AbstractContextManager]


class Bench:
    """The base network and what each task brings: update, rows and head; each loaded once, when it
    is first asked for."""

    def __init__(self, cell: Cell, adapters: Sequence[Adapter], workshop: Workshop) -> None:
        """Takes a cell's adapters, one a task, and behind them those that give the heads, if other
        ones do."""
        self.cell, self.workshop, self.tasks = cell, workshop, cell.tasks
        own, self._headed = adapters[: len(self.tasks)], adapters[-len(self.tasks) :]
        self.updates: dict[str, LowRank] = stacked([adapter.updates for adapter in own])
        self.batch_size = 4 * cell.tuning.batch_size  # no gradients to keep

    @cached_property
    def net(self) -> PreTrainedModel:
        precision, auto = self.cell.tuning.precision, self.tasks[0].kind.auto
        return _network(self.cell.model, precision, auto, self.workshop.device)

    @cached_property
    def data(self) -> list[data.TaskData]:
        return rows_of(self.cell)

    @cached_property
    def heads(self) -> list[dict[str, nn.Module]]:
        model = self.cell.model
        pairs = zip(self.tasks, self._headed)
        found = [new_heads(model, task.outputs, adapter.heads) for task, adapter in pairs]
        for head in (module for heads in found for module in heads.values()):
            head.requires_grad_(False)
        return found

    def statistics(self) -> dict[str, Any]:
        """What the cell's merge asks for, by keyword: `{module: [task, …]}`, read lazily.

        What is asked `of: suite` is a function of the bench, and returns whatever the merge takes.
        """
        single = needs.of_merge(self.cell, needs.fine_tunes(self.cell))
        store = self.workshop.store
        return {
            keyword: need.call(self, samples=need.samples)
            if need.of == "suite"
            else read_stacked(store.get_all(single[keyword], self.workshop))
            for keyword, need in self.cell.merge.statistics.items()
        }

    def scores(
        self,
        result: Result | Mapping[str, Update],
        split: str,
        heads: Heads | None = None,
        stacked: Stacked | None = None,
    ) -> list[Scored]:
        """Every task's predictions on a split, each with its own head, measured."""
        return list(self.each(result, split, heads, stacked=stacked))

    def each(
        self,
        result: Result | Mapping[str, Update],
        split: str,
        heads: Heads | None = None,
        part: slice | None = None,
        stacked: Stacked | None = None,
    ) -> Iterator[Scored]:
        """`scores`, task by task: whoever has seen enough stops.

        The result is computed once and stays in place meanwhile: all tasks run through it. `heads`
        take the place of the adapters' own, `part` of a split's rows that of all, what is `stacked`
        that of the checkpoint's layers.
        """
        with self.placed(result, stacked) as network:
            for index, task in enumerate(tqdm(self.tasks, desc=split, leave=False, delay=1)):
                rows = self.data[index].part(split, part) if part else self.data[index]
                with network(index, heads) as net:
                    outputs, right = task.kind.run(rows, net, split, self.batch_size)
                yield scores(task, outputs, right, rows.numbers(split))

    @contextmanager
    def placed(
        self, result: Result | Mapping[str, Update], stacked: Stacked | None = None
    ) -> Iterator[Network]:
        """With updates and layers in place, `network(index, heads)`: what a task meets.

        What all tasks share is placed module by module and not kept beside the network: dense, it
        costs the adapted weights once more. What every task has for itself is kept whole. A merge
        that runs the network does so before it is read.
        """
        own: dict[str, Update] = {}
        with ExitStack() as undone:
            if stacked:
                undone.enter_context(restacked(self.net, stacked))
            for module, update in result.items() if isinstance(result, Mapping) else result:
                if update.sharing == "per_task":
                    own[module] = update
                else:
                    undone.callback(place(self.net.get_submodule(module), update))
                del update  # a dense one is held by the weight now

            def network(index: int, heads: Heads | None = None) -> AbstractContextManager:
                alone = {module: update.task(index) for module, update in own.items()}
                return applied(self.net, alone, (heads or self.heads)[index])

            yield network

    def batches(
        self, index: int, split: str, rows: int | None = None, part: slice | None = None
    ) -> list[Batch]:
        """A task's batches of a split, of its first `rows`, of a `part` of these."""
        data = self.data[index]
        if part:
            data, rows = data.part(split, slice(rows)).part(split, part), None
        return data.batches(split, self.batch_size, rows)


def rows_of(cell: Cell) -> list[data.TaskData]:
    """Rows of every task, checked before the first is trained on, and kept for the process."""
    tuning = cell.tuning
    for task in cell.tasks if tuning.per_task else ():  # which may have a length of its own
        own = tuning.of(task.name)
        data.load(task, cell.model, own.max_length, own.truncation_side)
    how = (cell.model, tuning.max_length, tuning.truncation_side)
    return [data.load(task, *how) for task in cell.tasks]


@lru_cache(maxsize=1)
def _network(model: Model, precision: str, auto: str, device: torch.device) -> PreTrainedModel:
    net = load_backbone(model, 1, precision=precision, auto=auto).eval().to(device)
    return net.requires_grad_(False)
