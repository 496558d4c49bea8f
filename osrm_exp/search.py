"""Search over a merge's free coefficients: an optimiser proposes, an objective scores.

    def optimiser(candidates, score, *, options) -> (settings, value)

`candidates` is the merge's `grid`, `score` the objective: the mean headline over tasks on the split
that the protocol names, with the base model and all adapters loaded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from tqdm import tqdm


def grid(
    candidates: Mapping[str, Sequence[Any]], score: Callable[[dict[str, Any]], float]
) -> tuple[dict[str, Any], float]:
    """The best point of a full product; the first of equals, so order is part of the grid."""
    points = [dict(zip(candidates, values)) for values in product(*candidates.values())]
    best: tuple[dict[str, Any], float] = ({}, float("-inf"))
    for point in tqdm(points, desc="search", leave=False, delay=1):
        value = score(point)
        if value > best[1]:
            best = point, value
    return best
