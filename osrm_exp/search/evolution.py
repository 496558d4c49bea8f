"""Evolution: CMA-ES, and nevergrad's choice of an optimiser."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from osrm_exp.search.problem import Found, Problem
from osrm_exp.search.ranges import extra, moves, share, unit


def cmaes(
    problem: Problem, /, *, evaluations: PositiveInt, sigma: PositiveFloat,
    population: PositiveInt | None,
) -> Found:  # fmt: skip
    """The best point of CMA-ES; the first one is the merge as it stands.

    Hansen, 2016, arXiv 1604.00772, by the library `cma`. Every coordinate is scaled to its range,
    and kept in it.

    Args:
        problem: numbers, moved between the ends of what `space` lists.
        evaluations: how many candidates are scored, never more (`cma` itself runs to the end of a
            generation).
        sigma: first standard deviation, as a share of every range.
        population: candidates of a generation, null for the library's `4 + 3 log(dim)`.
    """
    library = extra("cma")
    moves(problem, "cmaes", numbers=True)
    start, names = problem.start, list(problem.space)
    at = [share(problem.space[name], start[name]) for name in names]
    options = {
        "randn": np.random.RandomState(problem.seed % 2**32).randn, "seed": np.nan,  # ours alone
        "bounds": [0.0, 1.0], "verbose": -9, **({"popsize": population} if population else {}),
    }  # fmt: skip

    def point(x: list[float]) -> dict:
        return {name: unit(problem.space[name], float(v)) for name, v in zip(names, x)}

    best = point(at)
    top, left = _scored(problem, best), evaluations - 1
    if len(names) == 1:  # cma refuses one dimension: the second means nothing
        at = [*at, 0.5]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="cma")
        strategy = library.CMAEvolutionStrategy(at, sigma, options)
        while left > 0 and not strategy.stop():
            asked = strategy.ask()[:left]
            scores = [_scored(problem, point(x)) for x in asked]
            left -= len(asked)
            for x, score in zip(asked, scores):
                if score > top:
                    best, top = point(x), score
            if len(scores) < strategy.popsize:
                break
            strategy.tell(asked, [-score for score in scores])
    return problem.chosen(best)


def nevergrad(problem: Problem, /, *, budget: PositiveInt, optimizer: str) -> Found:
    """The best point of one of nevergrad's optimisers; the first one is the merge as it stands.

    `NGOpt` chooses by budget and dimension, and another release may choose another: the found
    search names the one that it was.

    Args:
        problem: numbers, moved between the ends of what `space` lists.
        budget: how many candidates are proposed.
        optimizer: a name in nevergrad's registry.

    Raises:
        ValueError: an optimiser that nevergrad does not have, or that fails.
    """
    library = extra("nevergrad")
    moves(problem, "nevergrad", numbers=True)
    at = [share(values, problem.start[name]) for name, values in problem.space.items()]
    if optimizer not in library.optimizers.registry:
        raise ValueError(f"nevergrad has no optimizer {optimizer!r}: NGOpt is one that it has")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bounds beside a first deviation, of small budgets
        free = library.p.Array(init=at).set_bounds(0.0, 1.0)
        free.random_state.seed(problem.seed % 2**32)
        chosen = library.optimizers.registry[optimizer](free, budget=budget)
        chosen.suggest(at)
        try:
            best, broken, name = _run(problem, chosen, budget)
        finally:
            chosen = None  # here as there
    if best is None or broken:
        raise ValueError(
            f"nevergrad's {optimizer} failed, as {name} ({broken}): another optimizer helps, as "
            "optimizer=OnePlusOne"
        )
    return problem.chosen(best, note=name)


def _run(problem: Problem, chosen: Any, budget: int) -> tuple[dict | None, str, str]:
    """The best point, why it ended too soon if it did, and which optimiser it was."""
    best, top, name, asked = None, float("-inf"), chosen.name, None
    try:
        for _ in range(budget):
            asked, broken = _asked(chosen)
            if broken:
                return best, broken, name
            values = zip(problem.space.items(), asked.value)
            point = {of: unit(range_, float(v)) for (of, range_), v in values}
            score = _scored(problem, point)
            if best is None or score > top:
                best, top = point, score
            chosen.tell(asked, -score)
            name = getattr(chosen, "optim", chosen).name
    finally:
        chosen = asked = None  # its thread ends with it, which a traceback would keep alive
    return best, "", name


def _asked(chosen: Any) -> tuple[Any, str]:
    """A candidate, or why the library has none."""
    try:
        return chosen.ask(), ""
    except Exception as error:
        return None, " ".join(str(error).split()) or type(error).__name__


def _scored(problem: Problem, point: dict) -> float:
    score = problem.score(point)
    assert score is not None  # nothing stops it
    return score
