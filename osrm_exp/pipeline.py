"""One cell on one page: artifacts, merge, search, evaluation, rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from osrm_exp import needs
from osrm_exp.adapter import read_adapter
from osrm_exp.artifacts import Workshop
from osrm_exp.bench import Bench, rows_of
from osrm_exp.lora import Result
from osrm_exp.rehearsal import rehearse
from osrm_exp.spec import Cell, Merge

PACKAGES = ("osrm-exp", "torch", "transformers", "peft", "lightning", "datasets")


def run(cell: Cell, workshop: Workshop) -> list[dict[str, Any]]:
    """The rows of one cell; trains and collects only what the store does not hold.

    Raises:
        ValueError: in one sentence, what is wrong; what can be known is said before any training.
    """
    start = time.perf_counter()
    rehearse(cell)
    rows_of(cell)
    wanted = needs.fine_tunes(cell)
    workshop.store.get_all(needs.of_inits(wanted), workshop)
    adapters = [read_adapter(folder) for folder in workshop.store.get_all(wanted, workshop)]
    bench = Bench(cell, adapters, workshop)
    statistics = bench.statistics()
    merge, chosen = tuned(cell, bench, statistics)
    result = Result(merge(bench.updates, **statistics), cell.rank)
    found = bench.scores(result, "validation")
    shared = {
        **said_of(cell, merge), "chosen": chosen, "output": result.form,
        "tuned_on": cell.protocol.select if chosen else "none",
        "truncation_error": result.error, "adapters": [one.digest for one in wanted],
        "seconds": round(time.perf_counter() - start, 2),
    }  # fmt: skip
    return list(_rows(cell, shared, found))


def tuned(cell: Cell, bench: Bench, statistics: Mapping) -> tuple[Merge, dict[str, Any]]:
    """The merge at the settings of its best candidate, and what was chosen."""
    if not (cell.search.call and cell.merge.grid):
        return cell.merge, {}

    def score(candidate: dict[str, Any]) -> float:
        result = Result(cell.merge.with_(**candidate)(bench.updates, **statistics), cell.rank)
        found = bench.scores(result, cell.protocol.select)
        return sum(one.values[t.headline] for t, one in zip(cell.tasks, found)) / len(found)

    chosen, _ = cell.search.call(cell.merge.grid, score)
    return cell.merge.with_(**chosen), chosen


def said_of(cell: Cell, merge: Merge) -> dict[str, Any]:
    """What a row says of its cell."""
    return {
        "schema": 2, "experiment": cell.experiment, "model": cell.model.name,
        "dataset": cell.dataset, "tuning": cell.schedule, "init": cell.arm,
        "merge": cell.names["merge"], "space": merge.space,
        "settings": merge.settings, "protocol": cell.protocol.name, "seed": cell.seed,
        "cell": cell.digest, "line": cell.line, "setup": cell.setup,
        "inputs": {
            "weights": cell.model.weights,
            "sources": {task.name: task.source for task in cell.tasks},
        },
        "overrides": list(cell.overrides),
        "versions": {name: version(name) for name in PACKAGES},
    }  # fmt: skip


def _rows(cell: Cell, shared: Mapping[str, Any], found: list) -> Iterator[dict[str, Any]]:
    for task, scored in zip(cell.tasks, found):
        for metric, value in scored.values.items():
            yield {
                **shared, "task": task.name, "split": task.validation, "metric": metric,
                "value": value, "headline": metric == task.headline,
                "degenerate": scored.degenerate,
            }  # fmt: skip
