"""Every point of a product of values, and beyond its ends where asked to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

from tqdm import tqdm

from osrm_exp.search.problem import Found, Point, Problem

STEPS = 8  # how far a grid widens beyond each of its ends
MOST = 10_000  # points


def grid(problem: Problem, /, *, widen: bool) -> Found:
    """The best point of a full product; the first of equals, so order is part of the grid.

    Args:
        problem: what `space` lists is tried.
        widen: where the best point lies at an end of the numbers of a key, go on beyond it in the
            step of the last two, until the best point is no end, or for `STEPS` steps.

    Raises:
        ValueError: more points than anybody wants.
    """
    axes = {key: list(values) for key, values in problem.space.items()}
    if not 0 < (count := prod(len(values) for values in axes.values())) <= MOST:
        raise ValueError(
            f"a grid of {count} points: values of {', '.join(axes)} give 1 to {MOST}; "
            "search=optuna draws from more"
        )
    scores: dict[str, tuple[Any, Point]] = {}  # values may be lists
    for _ in range(1 + widen * STEPS):
        points = [dict(zip(axes, values)) for values in product(*axes.values())]
        for point in tqdm(points, desc="search", leave=False, delay=1):
            if repr(point) not in scores:
                scores[repr(point)] = problem.score(point), point
        _, best = max(scores.values(), key=lambda found: found[0])
        if not (widen and _widened(axes, best)):
            break
    return problem.chosen(best)


def scored(problem: Problem, /, *, widen: bool) -> Found:
    """`grid`; where there is nothing to choose, what stands is scored all the same."""
    if problem.space:
        return grid(problem, widen=widen)
    problem.score({})
    return problem.chosen({})


def _widened(axes: dict[str, list[Any]], best: Point) -> bool:
    """Adds a value beyond every end at which the best point lies; whether there was one."""
    added = [value for key, axis in axes.items() for value in _beyond(axis, best[key])]
    for key, axis in axes.items():
        axis += _beyond(axis, best[key])
    return bool(added)


def _beyond(axis: Sequence[Any], best: Any) -> Iterator[float]:
    """The next value in the step of an axis of positive numbers, if the best one is its end."""
    numbers = [v for v in axis if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) < max(2, len(axis)):
        return
    ordered = sorted(numbers)
    if best == ordered[-1]:
        yield round(2 * ordered[-1] - ordered[-2], 10)
    elif best == ordered[0] and (below := round(2 * ordered[0] - ordered[1], 10)) > 0:
        yield below
