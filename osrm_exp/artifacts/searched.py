"""A search: run on the loaded network, or gone on with where it was cut short, and kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from osrm_exp.adapter import read_adapter
from osrm_exp.artifacts.workshop import Workshop
from osrm_exp.bench import Bench
from osrm_exp.lora import Result
from osrm_exp.search.family import Outcome
from osrm_exp.search.history import Entry, History
from osrm_exp.search.problem import Found, Problem, family_of
from osrm_exp.spec import Cell, Searched
from osrm_exp.store import resume


def build(spec: Searched, folder: Path, workshop: Workshop) -> None:
    """Searches; beside what was chosen lies `history.jsonl`, an evaluation or a step a line."""
    cell, history = spec.cell, History(resume(folder))
    adapters = [read_adapter(one) for one in workshop.store.get_all(spec.adapters, workshop)]
    bench = Bench(cell, adapters, workshop)
    problem = Problem(cell, bench, bench.statistics(), history)
    assert cell.search.call is not None
    found = cell.search.call(problem)
    silent = [t.name for i, t in enumerate(cell.tasks) if i not in problem.members]
    told = {
        "settings": found.settings, "score": found.score, "note": found.note,
        "split": problem.split, "excluded": silent, "evaluations": len(history.entries),
        "seconds": round(sum(entry["seconds"] for entry in history.entries), 2),
    }  # fmt: skip
    (folder / "found.json").write_text(json.dumps(told, indent=2))
    save_file(found.tensors, folder / "coefficients.safetensors")
    shutil.copy(history.file, folder / "history.jsonl")


def read_told(folder: Path) -> dict[str, Any]:
    """What a search says of itself: settings, score, split, excluded tasks, cost."""
    return json.loads((folder / "found.json").read_text())


def read_history(folder: Path) -> list[Entry]:
    """Every evaluation, in its order."""
    return History(folder).entries


def outcome(
    cell: Cell, bench: Bench, statistics: Mapping[str, Any], folder: Path
) -> tuple[Result, Outcome]:
    """What a finished search makes of the adapters: a merge, with the heads and layers that are its
    own."""
    told = read_told(folder)
    found = Found(told["settings"], load_file(folder / "coefficients.safetensors"), told["score"])
    made = family_of(cell, bench, statistics).outcome(found.settings, found.tensors)
    return Result(made.updates, cell.rank), made
