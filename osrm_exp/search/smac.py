"""SMAC: a random forest proposes, Hyperband promotes what does well on few rows to more of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt

from osrm_exp.search.problem import Found, Problem
from osrm_exp.search.ranges import extra, fits, kind, moves


def smac(
    problem: Problem, /, *, trials: PositiveInt, startup: NonNegativeInt, least: PositiveInt,
    eta: Annotated[int, Field(ge=2)],
) -> Found:  # fmt: skip
    """The best of the points that were scored on all rows; those where it starts are among them.

    Lindauer et al., JMLR 2022, arXiv 2109.09831, `MultiFidelityFacade`. A candidate is scored on
    the first rows of every task; the best `1 / eta` of a round go on to `eta` times as many, up to
    all. What is conditional in the space is so for the forest too.

    Args:
        problem: numbers are drawn between the ends of what `space` lists, all else from the list.
        trials: how many times something is proposed, a point with a number of rows.
        startup: points drawn at random before the forest has a say, a quarter of them at most.
        least: rows of a task that the first round shows, if it has more.
        eta: how much a round is larger than the one before.
    """
    library, spaces = extra("smac"), extra("ConfigSpace")
    moves(problem, "smac")
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an empty history's mean
        scenario = library.Scenario(
            _space(spaces, problem), output_directory=Path(folder), deterministic=True,
            n_trials=trials, min_budget=min(least, max(problem.sizes)),
            max_budget=max(problem.sizes), seed=problem.seed % 2**32,
        )  # fmt: skip
        facade = _facade(library, spaces, problem, scenario, startup, eta)
        for _ in range(trials):
            try:
                asked = facade.ask()
            except StopIteration:  # nothing new is left
                break
            point = {name: _value(problem.space[name], v) for name, v in asked.config.items()}
            rows = round(asked.budget)
            score = problem.score(point, rows=slice(rows) if rows < max(problem.sizes) else None)
            assert score is not None  # nothing stops it
            facade.tell(asked, library.runhistory.TrialValue(cost=-score))
    for point in problem.starts:
        problem.score(point)
    return problem.chosen(problem.memory.best()["point"])


def _facade(
    library: ModuleType, spaces: ModuleType, problem: Problem, scenario: Any, startup: int, eta: int
) -> Any:
    begun = [
        spaces.Configuration(
            scenario.configspace, values={n: _coded(problem.space[n], v) for n, v in start.items()}
        )
        for start in problem.starts
        if all(fits(problem.space[name], value) for name, value in start.items())
    ][: scenario.n_trials]
    facade = library.MultiFidelityFacade
    design = facade.get_initial_design(
        scenario, additional_configs=begun, n_configs=min(startup, scenario.n_trials - len(begun))
    )
    return facade(
        scenario, lambda config, seed, budget: 0.0,  # noqa: ARG005 (it is asked and told)
        initial_design=design, intensifier=facade.get_intensifier(scenario, eta=eta),
        logging_level=False, overwrite=True,
    )  # fmt: skip


def _space(library: ModuleType, problem: Problem) -> Any:
    space = library.ConfigurationSpace(seed=problem.seed % 2**32)
    space.add([_free(library, name, values) for name, values in problem.space.items()])
    conditions = problem.family.conditions.items()
    space.add(
        [
            library.EqualsCondition(space[n], space[on], _coded(problem.space[on], value))
            for n, (on, value) in conditions
        ]
    )
    return space


def _free(library: ModuleType, name: str, values: tuple) -> Any:
    if (what := kind(values)) is None:
        return library.Categorical(name, [str(place) for place in range(len(values))])
    of = library.Integer if what is int else library.Float
    return of(name, (min(values), max(values)))


def _coded(values: tuple, value: Any) -> Any:
    """A value as the library knows it: of a list, its place."""
    return str(values.index(value)) if kind(values) is None else value


def _value(values: tuple, coded: Any) -> Any:
    what = kind(values)
    return values[int(coded)] if what is None else what(coded)
