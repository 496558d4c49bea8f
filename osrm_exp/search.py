"""Search over a merge's free coefficients: an optimiser proposes, an objective scores.

    def optimiser(candidates, score, *, options) -> settings

`candidates` is the merge's `grid`, `score` the objective: the mean headline over tasks on the split
that the protocol names, with the base model and all adapters loaded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from tqdm import tqdm

STEPS = 8  # how far a grid widens beyond each of its ends

Point = dict[str, Any]


def grid(
    candidates: Mapping[str, Sequence[Any]], score: Callable[[Point], float], /, *, widen: bool
) -> Point:
    """The best point of a full product; the first of equals, so order is part of the grid.

    Args:
        candidates: the values to try, by name.
        score: of a point, the higher the better.
        widen: where the best point lies at an end of the numbers of a key, go on beyond it in the
            step of the last two, until the best point is no end, or for `STEPS` steps.
    """
    if not candidates:
        return {}  # an evaluation that nothing hangs on is saved
    axes = {key: list(values) for key, values in candidates.items()}
    scores: dict[tuple, float] = {}
    for _ in range(1 + widen * STEPS):
        points = [values for values in product(*axes.values()) if values not in scores]
        for values in tqdm(points, desc="search", leave=False, delay=1):
            scores[values] = score(dict(zip(axes, values)))
        first = max(scores, key=scores.__getitem__)
        best = dict(zip(axes, first))
        if not (widen and _widened(axes, best)):
            break
    return best


def scored(
    candidates: Mapping[str, Sequence[Any]], score: Callable[[Point], float], /, *, widen: bool
) -> Point:
    """`grid`; where there is nothing to choose, what stands is scored all the same."""
    if not candidates:
        score({})
    return grid(candidates, score, widen=widen)


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
