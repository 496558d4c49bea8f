"""One cell on one page: artifacts, merge, search, evaluation, rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import cache, lru_cache, partial
from importlib.metadata import version
from itertools import chain
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor
from tqdm import tqdm

from osrm_exp.adapter import Adapter, read_adapter, stacked
from osrm_exp.artifacts import FineTune, Statistic, Workshop, read_start, read_statistic
from osrm_exp.diagnostics import diagnose
from osrm_exp.inits import row_norm
from osrm_exp.lora import LowRank, Result, Update
from osrm_exp.merging.method import Method
from osrm_exp.model import (
    adapted_modules,
    applied,
    heads_of,
    load_backbone,
    load_tokenizer,
    logits,
    new_heads,
    skeleton,
)
from osrm_exp.spec import Cell, Init, Task, check_target
from osrm_exp.tasks import data
from osrm_exp.tasks.metrics import metrics_of, scores


def run(cell: Cell, workshop: Workshop) -> list[dict[str, Any]]:
    """The rows of one cell; trains and collects only what the store does not hold."""
    start = time.perf_counter()
    method = check(cell)
    data_of(cell)
    fine_tunes = [fine_tune(cell, task) for task in cell.tasks]
    store = workshop.store
    store.get_all(list(dict.fromkeys(s for f in fine_tunes for s in needed(f))), workshop)
    folders = store.get_all(fine_tunes, workshop)
    adapters = [read_adapter(folder) for folder in folders]
    bench = cache(partial(Bench, cell, adapters, workshop))  # statistics load a net first
    statistics = collect(cell, method, fine_tunes, workshop, bench)
    chosen, tuned_on = tuned(cell, method, bench(), statistics)
    method = method.with_(**chosen)
    merged = Result(method(bench().updates, **statistics), cell.rank)
    found = bench().scores(dict(merged), "validation")
    shared = {
        **identity(cell, method), "chosen": chosen, "tuned_on": tuned_on, "output": merged.form,
        "truncation_error": merged.error, "adapters": [f.digest for f in fine_tunes],
        "seconds": round(time.perf_counter() - start, 2),
    }  # fmt: skip
    return list(rows(cell, shared, found))


def diagnosed(cell: Cell, workshop: Workshop) -> list[dict[str, Any]]:
    """The diagnostic rows of a cell's adapters, module by module; see `osrm_exp.diagnostics`."""
    fine_tunes = [fine_tune(cell, task) for task in cell.tasks]
    folders = workshop.store.get_all(fine_tunes, workshop)
    updates = stacked([read_adapter(folder).updates for folder in folders])
    starts = TaskStack([read_start(folder) for folder in folders])
    (how,) = cell.diagnostics.values()
    wanted = [statistic(cell, task, how) for task in cell.tasks]
    grams = TaskStack([read_statistic(f) for f in workshop.store.get_all(wanted, workshop)])
    of = {
        "cell": cell.digest, "init": overridden(cell, "init"), "seed": cell.seed,
        "tasks": [task.name for task in cell.tasks],
    }  # fmt: skip
    return [{**of, **row} for row in diagnose(updates, starts, grams)]


def check(cell: Cell) -> Method:
    """Everything about a cell that can be known before weights or rows are loaded.

    Raises:
        ValueError: in one sentence, what is wrong and the way out.
    """
    method = Method.of(cell.merge)
    for keyword, how in method.statistics.items():
        if (of := how.get("of")) not in ("expert", "pretrained", "suite"):
            raise ValueError(
                f"merge.statistics.{keyword}.of is {of!r}: choose expert, pretrained or suite"
            )
    declared = cell.init.get("statistics", {})
    check_target("init", Init.options(cell.init), 2, ("generator", *declared))
    row_norm(torch.ones(1, 1), cell.init["row_norm"])  # for what it raises
    check_target("search", cell.search, 2)
    for how in chain.from_iterable(
        found.values() for found in (declared, method.statistics, cell.diagnostics or {})
    ):
        if how.get("of") == "suite":
            check_target("statistics", _but_of(how), 1)
        else:
            check_target("statistics", statistic(cell, cell.tasks[0], how).how, 3)
    for task in cell.tasks:
        metrics_of(task)
    net = skeleton(cell.model, cell.tasks[0].outputs)
    adapted_modules(net, cell.model, cell.tuning.lora.blocks, cell.tuning.lora.r)
    heads_of(net, cell.model)
    return method


def data_of(cell: Cell) -> list[data.TaskData]:
    """Rows of every task, checked before the first is trained on, and kept for the process."""
    tokenizer = load_tokenizer(cell.model, cell.tuning.truncation_side)
    return [data.load(task, tokenizer, cell.tuning.max_length) for task in cell.tasks]


def fine_tune(cell: Cell, task: Task) -> FineTune:
    """The artifact that a cell needs for one task: its own statistics and those of the others,
    or the adapter of the task that it continues from."""
    tuning, first = cell.tuning.of(task.name), None
    if tuning.intermediate:
        first = fine_tune(cell, next(t for t in cell.tasks if t.name == tuning.intermediate))
    declared = {} if first else cell.init.get("statistics", {})
    own, others = {}, {}
    for keyword, how in declared.items():
        if keyword == "others":
            rest = [other for other in cell.tasks if other.name != task.name]
            if not rest:
                raise ValueError(f"init={cell.names['init']} needs at least two tasks")
            others[keyword] = tuple(statistic(cell, other, how) for other in rest)
        else:
            own[keyword] = statistic(cell, task, how)
    return FineTune(
        model=cell.model, task=task, tuning=tuning, init=cell.init, own=own, others=others,
        select=cell.protocol.select, seed=cell.seed, intermediate=first,
    )  # fmt: skip


def statistic(
    cell: Cell, task: Task, how: Mapping[str, Any], expert: FineTune | None = None
) -> Statistic:
    """The artifact that a `statistics` entry of a config names, for one task."""
    options = {k: v for k, v in how.items() if k not in ("samples", "of")}
    tuning = cell.tuning
    return Statistic(
        model=cell.model, task=task, blocks=tuning.lora.blocks, precision=tuning.precision,
        max_length=tuning.max_length, truncation_side=tuning.truncation_side,
        how=options, samples=how["samples"], expert=expert,
    )  # fmt: skip


def needed(fine_tune: FineTune) -> Iterator[Statistic]:
    yield from fine_tune.own.values()
    for statistics in fine_tune.others.values():
        yield from statistics


def collect(
    cell: Cell, method: Method, fine_tunes: list[FineTune], workshop: Workshop,
    bench: Callable[[], Bench],
) -> dict[str, Any]:  # fmt: skip
    """The statistics that a merge declares, by keyword: `{module: [task, …]}`, read lazily.

    What is asked `of: suite` is a function of the bench, and returns whatever the merge takes.
    """
    found = {}
    for keyword, how in method.statistics.items():
        if how["of"] == "suite":
            found[keyword] = instantiate(_but_of(how), _partial_=True)(bench())
            continue
        experts = fine_tunes if how["of"] == "expert" else [None] * len(fine_tunes)
        wanted = [statistic(cell, t, how, e) for t, e in zip(cell.tasks, experts)]
        folders = workshop.store.get_all(wanted, workshop)
        found[keyword] = TaskStack([read_statistic(folder) for folder in folders])
    return found


def _but_of(how: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in how.items() if k != "of"}


class TaskStack(Mapping):
    """Per-task statistics as one mapping `{module: [task, …]}`; a module is read on access."""

    def __init__(self, tasks: list[Mapping[str, Tensor]]) -> None:
        self.tasks = tasks

    def __getitem__(self, name: str) -> Tensor:
        return torch.stack([task[name] for task in self.tasks])

    def __iter__(self) -> Iterator[str]:
        return iter(self.tasks[0])

    def __len__(self) -> int:
        return len(self.tasks[0])


def tuned(cell: Cell, method: Method, bench: Bench, statistics: Mapping) -> tuple[dict, str]:
    """The settings of the best candidate, and the split that chose them."""
    if not (cell.search.get("_target_") and method.grid):
        return {}, "none"

    def score(candidate: dict[str, Any]) -> float:
        merged = method.with_(**candidate)(bench.updates, **statistics)
        found = bench.scores(dict(Result(merged, cell.rank)), cell.protocol.select)
        return sum(v[t.headline] for t, (v, _) in zip(cell.tasks, found)) / len(found)

    best, _ = instantiate(cell.search, _partial_=True)(method.grid, score)
    return best, cell.protocol.select


class Bench:
    """The base network, loaded once, and what each task brings: rows and head."""

    def __init__(self, cell: Cell, adapters: list[Adapter], workshop: Workshop) -> None:
        self.tasks = cell.tasks
        self.updates: dict[str, LowRank] = stacked([adapter.updates for adapter in adapters])
        tuning = cell.tuning
        self.net = _network(cell.model, tuning.precision)
        self.net.to(workshop.device)
        self.batch_size = 4 * tuning.batch_size  # no gradients to keep
        self.data = data_of(cell)
        self.heads = [
            new_heads(cell.model, task.outputs, adapter.heads)
            for task, adapter in zip(cell.tasks, adapters)
        ]

    def scores(
        self, merged: Mapping[str, Update], split: str
    ) -> list[tuple[dict[str, float], bool]]:
        """Every task's metrics on a split, each with its own head, and whether they degenerate.

        The result is held whole: every module of it is computed once.
        """
        merged, found = dict(merged), []
        shared = all(update.sharing != "per_task" for update in merged.values())
        with applied(self.net, merged) if shared else nullcontext():
            for index, task in enumerate(tqdm(self.tasks, desc=split, leave=False, delay=1)):
                own = {} if shared else {k: update.task(index) for k, update in merged.items()}
                batches = self.data[index].batches(split, self.batch_size)
                with applied(self.net, own, self.heads[index]) as net:
                    found.append(scores(task, *logits(net, batches)))
        return found


@lru_cache(maxsize=1)
def _network(model, precision: str):
    return load_backbone(model, 1, precision=precision).eval()


def identity(cell: Cell, method: Method) -> dict[str, Any]:
    """What a row says of its cell."""
    packages = ("osrm-exp", "torch", "transformers", "peft", "lightning", "datasets")
    return {
        "experiment": cell.experiment, "model": cell.model.name, "dataset": cell.dataset,
        "tuning": overridden(cell, "tuning"), "init": overridden(cell, "init"),
        "merge": cell.names["merge"],
        "space": method.space, "settings": method.settings, "protocol": cell.protocol.name,
        "seed": cell.seed, "cell": cell.digest, "line": cell.line, "setup": cell.setup,
        "overrides": list(cell.overrides),
        "versions": {name: version(name) for name in packages},
    }  # fmt: skip


def overridden(cell: Cell, group: str) -> str:
    """The chosen file of a group and what was overridden in it: no two arms look alike.

    Of `tuning` also, wherever it was set, what gives a task's column another meaning.
    """
    name = cell.names["init"] if group == "init" else cell.tuning.name
    changed = [o for o in cell.overrides if o.lstrip("+").startswith(f"{group}.")]
    parts = [name, *(o.partition(".")[2] for o in changed)]
    if group == "tuning":
        first = {task.name: cell.tuning.of(task.name).intermediate for task in cell.tasks}
        parts += [f"per_task.{task}.intermediate={of}" for task, of in first.items() if of]
    return " ".join(dict.fromkeys(parts))


def rows(cell: Cell, shared: Mapping[str, Any], found: list) -> Iterator[dict[str, Any]]:
    for task, (values, degenerate) in zip(cell.tasks, found):
        for metric, value in values.items():
            yield {
                **shared, "task": task.name, "split": task.validation, "metric": metric,
                "value": value, "headline": metric == task.headline, "degenerate": degenerate,
            }  # fmt: skip
