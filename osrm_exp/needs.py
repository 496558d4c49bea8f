"""Which artifacts a cell asks for: its adapters, their statistics, those of its merge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from osrm_exp.record import digest
from osrm_exp.spec import Cell, FineTune, Given, Need, Searched, Statistic, Task

Expert = FineTune | Given  # an adapter of one task


def fine_tunes(cell: Cell) -> list[Expert]:
    """The adapters of a cell, one a task: given, or to be trained."""
    return [cell.given.get(task.name) or fine_tune(cell, task) for task in cell.tasks]


def heads(cell: Cell) -> list[Expert]:
    """The adapters whose heads a cell's deltas meet, one a task."""
    if cell.heads is None:
        return fine_tunes(cell)
    other = {"init": cell.heads.init, "tuning": cell.heads.tuning}
    return fine_tunes(cell.model_copy(update=other))


def fine_tune(cell: Cell, task: Task) -> FineTune:
    """The adapter that a cell needs for one task: with its own statistics and those of the others,
    or with the adapter of the task that it continues from.

    Raises:
        ValueError: an init that asks for other tasks where there is none.
    """
    tuning = cell.tuning.of(task.name)
    first = next((one for one in cell.tasks if one.name == tuning.intermediate), None)
    own, others = ({}, {}) if first else _asked_by_init(cell, task)
    return FineTune(
        model=cell.model, task=task, tuning=tuning, init=cell.init, own=own, others=others,
        select=cell.protocol.select, seed=cell.seed,
        intermediate=fine_tune(cell, first) if first else None,
    )  # fmt: skip


def _asked_by_init(
    cell: Cell, task: Task
) -> tuple[dict[str, Statistic], dict[str, tuple[Statistic, ...]]]:
    """The statistics of a task itself and of the others, by keyword of the init's function."""
    rest = [other for other in cell.tasks if other.name != task.name]
    own: dict[str, Statistic] = {}
    others: dict[str, tuple[Statistic, ...]] = {}
    for keyword, need in cell.init.statistics.items():
        if need.tasks == "own":
            own[keyword] = statistic(cell, task, need)
        elif rest:
            others[keyword] = tuple(statistic(cell, other, need) for other in rest)
        else:
            raise ValueError(f"init={cell.names['init']} needs at least two tasks")
    return own, others


def statistic(cell: Cell, task: Task, need: Need, expert: Expert | None = None) -> Statistic:
    """The artifact that a `statistics` entry of a config names, for one task."""
    tuning = cell.tuning
    return Statistic(
        model=cell.model, task=task, blocks=tuning.lora.blocks, precision=tuning.precision,
        max_length=tuning.max_length, truncation_side=tuning.truncation_side,
        call=need.call, samples=need.samples, expert=expert,
    )  # fmt: skip


def of_inits(found: Sequence[Expert]) -> list[Statistic]:
    """The statistics that adapters start from, each once: whoever needs one finds it built."""
    trained = (one for one in found if isinstance(one, FineTune))
    return list(dict.fromkeys(one for fine_tune in trained for one in _of_init(fine_tune)))


def _of_init(fine_tune: FineTune) -> Iterator[Statistic]:
    yield from fine_tune.own.values()
    for statistics in fine_tune.others.values():
        yield from statistics


def of_merge(cell: Cell, found: Sequence[Expert]) -> dict[str, list[Statistic]]:
    """The statistics of single tasks that a merge asks for, by keyword, one a task."""
    return {
        keyword: [
            statistic(cell, task, need, expert if need.of == "expert" else None)
            for task, expert in zip(cell.tasks, found)
        ]
        for keyword, need in cell.merge.statistics.items()
        if need.of != "suite"
    }


def is_searched(cell: Cell) -> bool:
    """Whether something in a cell's merge is free, and an optimiser chooses it."""
    return bool(cell.search.call and (cell.merge.grid or cell.search.family))


def searched(cell: Cell) -> Searched | None:
    """The search of a cell's coefficients; None where nothing is free."""
    if not is_searched(cell):
        return None
    found = fine_tunes(cell)
    statistics = (one for asked in of_merge(cell, found).values() for one in asked)
    adapters = (*found, *(heads(cell) if cell.heads else ()))
    return Searched(cell=cell, adapters=adapters, statistics=tuple(statistics))


def data(cell: Cell) -> list[str]:
    """What a cell's merge sees of the tasks' rows, statistics and search together."""
    seen = [need.data for need in cell.merge.statistics.values()]
    if is_searched(cell):
        seen.append(seen_by_search(cell))
    return sorted(set(seen))


def seen_by_search(cell: Cell) -> str:
    """`unlabeled tune`: whether a search sees labels, and of which split; `few`, of 10 or less."""
    objective = cell.search.objective
    if objective is None:
        return f"labeled {cell.protocol.select}"
    judge: Any = objective.call.function
    labels = "labeled" if judge.labeled else "unlabeled"
    few = "few " if (objective.rows or 11) <= 10 else ""
    return f"{few}{labels} {objective.split or cell.protocol.select}"


def of_diagnostics(cell: Cell) -> list[Statistic]:
    """The statistics that tell what a cell's adapters do to each other's data, one a task."""
    return [
        statistic(cell, task, need) for need in cell.diagnostics.values() for task in cell.tasks
    ]


def diagnosis(cell: Cell) -> str:
    """The address of a cell's diagnostics: its adapters and what they are judged on."""
    asked = [*fine_tunes(cell), *of_diagnostics(cell)]
    return digest([one.digest for one in asked])
