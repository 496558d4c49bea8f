"""What an optimiser sees of a search: what is free, a score for a point, a gradient for tensors.

    def optimiser(problem: Problem, /, *, options) -> Found

Every evaluation is remembered as soon as it is made, and what is remembered is never evaluated
again: an optimiser that proposes the same points for the same seed goes on, after a kill, by
beginning anew. One that moves tensors keeps its own state in `problem.history.folder`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from osrm_exp.bench import Bench
from osrm_exp.lora import LowRank, Result, Update
from osrm_exp.merging.contract import upheld
from osrm_exp.placing import applied
from osrm_exp.search.coefficients import Coefficients
from osrm_exp.search.family import Family, Outcome, Scene, Tensors
from osrm_exp.search.history import History
from osrm_exp.search.memory import Memory, Point, part
from osrm_exp.search.objectives import Features, Judge, Seen
from osrm_exp.search.pieces import cut, read_by_head, watched
from osrm_exp.search.safety import shares
from osrm_exp.spec import Cell
from osrm_exp.statistics.suite import experts
from osrm_exp.tasks.prompts import Batch

Stop = Callable[[int, float], bool]  # (tasks seen, their mean): whether that is enough


class Found(NamedTuple):
    """What a search chose."""

    settings: Point  # of the merge
    tensors: Tensors  # of the family
    score: float | None  # of the choice, on the split that chose; None where none was measured
    note: str = ""  # which optimiser it really was, where that is not in the config


def family_of(cell: Cell, bench: Bench, statistics: Mapping[str, Any]) -> Family:
    """What is free in a cell's merge."""
    search = cell.search
    updates: Mapping[str, Any] = bench.updates
    if search.first:
        call = search.first.call
        updates = upheld(call.function)(bench.updates, **call.options)

    def merge(stacks: Any, settings: Mapping[str, Any]) -> Mapping[str, Update]:
        return cell.merge.with_(**settings)(stacks, **statistics)

    scene = Scene(dict(updates), merge, [task.name for task in cell.tasks], bench)
    if search.family:
        return search.family.call(scene)
    return Coefficients(
        scene, groups=None, per_task=False, grain="update", start=1.0, values=None, penalty=0.0,
        weights=None, normalize=False,
    )  # fmt: skip


class Problem:
    """A cell's search on a loaded network: nothing is read again for a candidate."""

    def __init__(
        self, cell: Cell, bench: Bench, statistics: Mapping[str, Any], history: History
    ) -> None:
        self.cell, self.bench, self.history, self.seed = cell, bench, history, cell.seed
        self.family = family_of(cell, bench, statistics)
        objective = cell.search.objective
        self.judge: Judge | None = objective.call() if objective else None
        self.split = (objective and objective.split) or cell.protocol.select
        self.rows = objective.rows if objective else None
        judged = [
            index for index, task in enumerate(cell.tasks)
            if self.judge is None or self.judge.takes(task)
        ]  # fmt: skip
        self.shares = shares(objective, cell.tasks, judged)
        self.members = [index for index in judged if self.shares[index]]
        self.settings = {key: cell.merge.settings.get(key) for key in cell.merge.grid}
        self.space = {**cell.merge.grid, **self.family.space}
        self.memory = Memory(history)

    @property
    def starts(self) -> list[Point]:
        """Points to begin at: settings of the config, and where the family starts."""
        return [{**self.settings, **point} for point in self.family.starts]

    @property
    def start(self) -> Point:
        """The point at which everything stands."""
        return self.starts[0]

    @cached_property
    def sizes(self) -> list[int]:
        """How many rows a judged task shows."""
        rows = [getattr(self.bench.data[index], self.split) for index in self.members]
        return [len(one[: self.rows]) for one in rows]

    def chosen(self, point: Point, note: str = "") -> Found:
        """A point that was scored, as what is found."""
        entry = self.memory.find(self._active(point))
        assert entry is not None
        settings = {key: point[key] for key in self.cell.merge.grid}
        return Found(settings, self.family.read(point), entry["score"], note)

    def score(
        self, point: Point, stop: Stop | None = None, rows: slice | None = None
    ) -> float | None:
        """The higher the better; None where `stop` ended it.

        Args:
            point: what it holds for a condition that is not met has no say.
            stop: asked after every task but the last.
            rows: of every task, in the place of all of them.
        """
        point = self._active(point)
        entry = self.memory.find(point, rows)
        if entry is None:
            start = time.perf_counter()
            tasks = self._tried(point, stop, rows)
            whole = len(tasks) == len(self.members)
            score = self._mean(tasks) if whole else None
            if score is not None and self.family.penalty:
                score -= self.family.penalty * self._magnitude(point)
            seconds = round(time.perf_counter() - start, 4)
            entry = {"point": point, **part(rows), "score": score, "tasks": tasks}
            entry["seconds"] = seconds
            self.memory.add(entry)
        elif stop:
            seen = list(entry["tasks"].items())
            for count in range(1, len(self.members)):  # an optimiser is told what it was told
                if count <= len(seen) and stop(count, self._mean(dict(seen[:count]))):
                    break
        return entry["score"]

    def _active(self, point: Point) -> Point:
        asked = {name: self.family.conditions.get(name) for name in point}
        return {n: v for n, v in point.items() if not (on := asked[n]) or point[on[0]] == on[1]}

    def _mean(self, tasks: Mapping[str, float]) -> float:
        """Of the tasks seen, each by its share."""
        of = {task.name: share for task, share in zip(self.cell.tasks, self.shares)}
        return sum(of[name] * v for name, v in tasks.items()) / sum(of[name] for name in tasks)

    def _magnitude(self, point: Point) -> float:
        free = [tensor.abs().mean() for tensor in self.family.read(point).values()]
        return torch.stack(free).mean().item()

    def _tried(self, point: Point, stop: Stop | None, rows: slice | None) -> dict[str, float]:
        """Every task's score, until `stop` ends it."""
        settings = {key: point[key] for key in self.cell.merge.grid}
        outcome = self.family.outcome(settings, self.family.read(point))
        result = Result(outcome.updates, self.cell.rank)
        found: dict[str, float] = {}
        for index, value in self._each(result, outcome, rows):
            found[self.cell.tasks[index].name] = value
            enough = stop and len(found) < len(self.members)
            if enough and stop and stop(len(found), self._mean(found)):
                break
        return found

    def _each(
        self, result: Result, made: Outcome, rows: slice | None
    ) -> Iterator[tuple[int, float]]:
        if self.judge is None:
            found = self.bench.each(result, self.split, made.heads, rows, made.stacked)
            for index, (task, one) in enumerate(zip(self.cell.tasks, found)):
                yield index, one.values[task.headline]
            return
        shown = {i: self.bench.batches(i, self.split, self.rows, rows) for i in self.members}
        targets = {i: self._targets(i, batches) for i, batches in shown.items()}
        with self.bench.placed(result, made.stacked) as network, torch.no_grad():
            for index, batches in shown.items():
                total = count = 0.0
                with network(index, made.heads) as net:
                    for batch, target in zip(batches, targets[index]):
                        seen = len(batch["input_ids"])
                        total += seen * self._judged(net, index, batch, target).item()
                        count += seen
                yield index, -total / count

    def tick(self) -> None:
        """Of an optimiser that computes gradients by itself, once a step."""

    def gradient(self, tensors: Tensors, draw: Callable[[int], Sequence[Batch]]) -> dict:
        """Adds the gradient of the objective, summed over tasks (by their shares) and batches.

        The merge is computed once, and a task's graph is gone before the next one's is made.

        Args:
            tensors: of the family, leaves that require a gradient and get it.
            draw: the batches of a task, by its place.

        Returns:
            Every task's mean value.
        """
        assert self.judge is not None
        outcome = self.family.outcome(self.settings, tensors)
        drawn = {index: draw(index) for index in self.members}
        targets = {index: self._targets(index, batches) for index, batches in drawn.items()}
        cuts: list[tuple[Tensor, Tensor]] = []
        updates = {module: cut(update, cuts) for module, update in outcome.updates.items()}
        found = {}
        with self.bench.placed(updates) as network:
            for index, batches in drawn.items():
                with network(index, outcome.heads) as net:
                    values = []
                    for batch, target in zip(batches, targets[index]):
                        value = self._judged(net, index, batch, target)
                        (self.shares[index] * value).backward()
                        values.append(value.item())
                found[self.cell.tasks[index].name] = sum(values) / len(values)
        reached = [(whole, leaf.grad) for whole, leaf in cuts if leaf.grad is not None]
        if reached:
            torch.autograd.backward([w for w, _ in reached], [g for _, g in reached])
        return found

    def _judged(self, net: Any, index: int, batch: Batch, target: Tensor | None) -> Tensor:
        """The objective on a batch; an unlabeled one never sees the labels."""
        assert self.judge is not None
        placed, task = {k: v.to(net.device) for k, v in batch.items()}, self.cell.tasks[index]
        if self.judge.labeled:
            return self.judge(Seen(task, *task.kind.forward(net, placed)))
        inputs = {key: value for key, value in placed.items() if key != "labels"}
        if target is None:
            return self.judge(Seen(task, net(**inputs).logits))
        with watched(net, self.bench.heads[index]) as seen:
            outputs = net(**inputs).logits
        (features,) = seen
        return self.judge(Seen(task, outputs, None, Features(features, *target)))

    def _targets(self, index: int, batches: Sequence[Batch]) -> Sequence[Any]:
        """Of every batch the expert's features, and which of them its head reads."""
        assert self.judge is not None
        if not self.judge.features:
            return [None] * len(batches)
        net, heads = self.bench.net, self.bench.heads[index]
        with applied(net, self._experts[index], heads):
            return [read_by_head(net, heads, batch) for batch in batches]

    @cached_property
    def _experts(self) -> list[dict[str, LowRank]]:
        return experts(self.bench)
