"""A search in miniature: on a tiny network, a few candidates that cost nothing."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from osrm_exp import needs
from osrm_exp.lora import Result
from osrm_exp.search.family import Tensors
from osrm_exp.search.history import History
from osrm_exp.search.problem import Point, Problem
from osrm_exp.spec import Cell, Search

TRIED, ROWS = 2, 9


def check(search: Search, where: str, holdout: float) -> None:
    """Whether the functions of a search take their options, and its rows are there.

    Raises:
        ValueError: see `Call.check`; a slice that the protocol does not hold out.
    """
    assert search.call is not None
    search.call.check(where, 1)
    parts = {"family": search.family, "first": search.first, "objective": search.objective}
    for (name, part), given in zip(parts.items(), (1, 1, 0)):
        if part:
            part.call.check(f"{where}.{name}", given)
    if search.objective and search.objective.split == "tune" and holdout == 0:
        raise ValueError(
            f"{where}.objective.split=tune: protocol.holdout=0 holds no row out: take train, "
            "or protocol=clean"
        )


def dry(cell: Cell, stage: Any, statistics: Mapping[str, Any]) -> None:
    """Makes a candidate of the family, and lets the optimiser propose a few.

    Raises:
        ValueError: no task that the objective can judge; whatever a function says.
    """
    with TemporaryDirectory() as folder:
        problem = _Dry(cell, stage, statistics, History(Path(folder)))
        for _ in Result(problem.family.outcome(problem.settings, problem.family.start).updates):
            pass
        if not needs.is_searched(cell):
            return
        if not problem.members:
            raise ValueError(
                f"no task of {', '.join(task.name for task in cell.tasks)} has anything to say by "
                f"{cell.search.name.split()[-1]}: it judges classes, and a regression has none"
            )
        assert cell.search.call is not None
        with suppress(_Enough):
            cell.search.call(problem)


class _Enough(Exception):  # noqa: N818 (it is none)
    """A search has shown that it goes."""


class _Dry(Problem):
    """A search whose candidates cost nothing, and which ends after a few."""

    left = TRIED

    sizes = [ROWS]

    def score(self, point: Point, stop: Any = None, rows: Any = None) -> float:  # noqa: ARG002
        self.tick()
        self.memory.add({"point": self._active(point), "score": 0.5})
        return 0.5

    def tick(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise _Enough

    def gradient(self, tensors: Tensors, draw: Any) -> dict:  # noqa: ARG002
        self.tick()
        for tensor in tensors.values():
            tensor.sum().backward()
        return {}
