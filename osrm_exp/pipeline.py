"""One cell on one page: artifacts, merge, search, evaluation, rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from osrm_exp import needs, preflight, searchpath
from osrm_exp.adapter import read_adapter
from osrm_exp.artifacts import Workshop
from osrm_exp.artifacts.curve import curve
from osrm_exp.artifacts.searched import outcome, read_history, read_told
from osrm_exp.bench import Bench, rows_of
from osrm_exp.identity import unpinned
from osrm_exp.lora import Result
from osrm_exp.overrides import public
from osrm_exp.rehearsal import rehearse
from osrm_exp.search import family
from osrm_exp.spec import Cell, Merge, Searched, Task
from osrm_exp.tasks.metrics import Scored

PACKAGES = ("osrm-exp", "torch", "transformers", "peft", "lightning", "datasets")

NOTHING = family.Outcome({})  # beside updates
Rows = list[dict[str, Any]]


class Outcome(NamedTuple):
    """What a cell leaves behind: its scores, and the evidence for them."""

    rows: Rows  # one metric of one task each
    tried: Rows  # every candidate of a search, with its score on the split that chose
    predictions: Rows  # of every reported row


def run(cell: Cell, workshop: Workshop) -> Outcome:
    """Runs one cell; trains and collects only what the store does not hold.

    Raises:
        ValueError: in one sentence, what is wrong; what can be known is said before any training.
    """
    start, own = time.perf_counter(), needs.fine_tunes(cell)
    folders = prepared(cell, [*own, *needs.heads(cell)], workshop)
    trainings = [curve(one, folder, workshop) for one, folder in zip(own, folders)]
    bench = Bench(cell, [read_adapter(folder) for folder in folders], workshop)
    statistics = bench.statistics()
    wanted = needs.searched(cell)
    folder = workshop.store.get(wanted, workshop) if wanted else None
    before = time.perf_counter()
    result, beside = (
        outcome(cell, bench, statistics, folder) if folder
        else (Result(cell.merge(bench.updates, **statistics), cell.rank), NOTHING)
    )  # fmt: skip
    merging = time.perf_counter() - before
    found = bench.scores(result, "validation", beside.heads, beside.stacked)  # merges as it goes
    told, tried = searched(cell, wanted, folder)
    shared = {
        **said_of(cell, cell.merge.with_(**told["chosen"])), **told,
        "output": output(result, beside),
        "contents": [workshop.store.content(one) for one in own], "data": needs.data(cell),
        "truncation_error": result.error, "merge_seconds": round(merging + result.seconds, 3),
        "seconds": round(time.perf_counter() - start, 2),
    }  # fmt: skip
    rows = [
        {**row, "expert_tuned_score": training.get("headline")}
        for task, training, scored in zip(cell.tasks, trainings, found)
        for row in _rows(task, shared, scored)
    ]
    return Outcome(rows, tried, list(_predictions(cell, found)))


def prepared(cell: Cell, wanted: Sequence[needs.Expert], workshop: Workshop) -> list[Path]:
    """The folders of a cell's adapters, built where they are not there; before the first is, all
    that can be wrong with the cell is said."""
    given = {
        task: read_adapter(workshop.store.get(one, workshop)) for task, one in cell.given.items()
    }
    rehearse(cell, given)
    workshop.tell_cost(cell.tuning.precision)
    workshop.check(wanted)
    rows_of(cell)
    preflight.check(cell, given, workshop)
    workshop.store.get_all(needs.of_inits(wanted), workshop)
    workshop.untold.update(one.digest for one in wanted[: len(cell.tasks)])
    return workshop.store.get_all(wanted, workshop)


def searched(
    cell: Cell, wanted: Searched | None, folder: Path | None
) -> tuple[dict[str, Any], Rows]:
    """What a row says of a search, and every candidate with its score."""
    if wanted is None or folder is None:
        return {"chosen": {}, "tuned_on": "none", "tuned_score": None}, []
    told = read_told(folder)
    tried = [
        {"cell": cell.digest, "point": {}, "score": None, **entry, "split": told["split"]}
        for entry in read_history(folder)
    ]
    named = {key: told[key] for key in ("evaluations", "seconds", "excluded", "note") if told[key]}
    search = {"name": cell.search.name, "artifact": wanted.digest, **named}
    said = {"chosen": told["settings"], "tuned_on": told["split"], "tuned_score": told["score"]}
    return {**said, "search": search}, tried


def said_of(cell: Cell, merge: Merge) -> dict[str, Any]:
    """What a row says of its cell."""
    inputs: dict[str, Any] = {
        "weights": cell.model.weights,
        "sources": {task.name: task.source for task in cell.tasks},
        "given": {task: one.content for task, one in cell.given.items()},
    }
    named = [inputs["weights"], *inputs["sources"].values(), *inputs["given"].values()]
    return {
        "schema": 2, "experiment": cell.experiment, "model": cell.model.name,
        "dataset": cell.dataset, "tuning": cell.schedule, "init": cell.arm,
        "heads": cell.heads.name if cell.heads else "own", "merge": cell.names["merge"],
        "space": merge.space, "settings": merge.settings, "protocol": cell.protocol.name,
        "seed": cell.seed, "cell": cell.digest, "line": cell.line, "setup": cell.setup,
        "adapters": [one.digest for one in needs.fine_tunes(cell)],
        "inputs": inputs, "unpinned": sorted(set(filter(unpinned, named))),
        "overrides": [public(one) for one in cell.overrides],
        "conf": [public(one) for one in searchpath.named()],
        "versions": {name: version(name) for name in PACKAGES},
    }  # fmt: skip


def output(result: Result, beside: family.Outcome) -> str:
    """The form of a result, with what is beside its updates."""
    if beside.stacked:
        return f"{result.form} of {len(beside.stacked.layers)} layers"
    return f"per_task, {result.form.partition(', ')[2]}" if beside.heads else result.form


def _rows(task: Task, shared: Mapping[str, Any], scored: Scored) -> Iterator[dict]:
    for metric, value in scored.values.items():
        yield {
            **shared, "task": task.name, "split": task.validation, "metric": metric,
            "value": value, "headline": metric == task.headline,
            "floor": scored.floors[metric], "rows": len(scored.labels),
            "degenerate": scored.degenerate, "largest_share": scored.largest_share,
        }  # fmt: skip


def _predictions(cell: Cell, found: Sequence[Scored]) -> Iterator[dict]:
    for task, scored in zip(cell.tasks, found):
        for row, label, guess in zip(scored.rows, scored.labels, scored.predictions):
            known = {"label": float(label), "prediction": float(guess)}
            yield {"task": task.name, "row": row, **known}
