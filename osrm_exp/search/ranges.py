"""What optimisers that draw numbers make of a space, and the libraries that they come from."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from osrm_exp.search.problem import Problem


def extra(name: str) -> ModuleType:
    """A library that the extra `search` installs.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(
            f'the optimiser needs {name}, which is not installed: pip install "osrm-exp[search]", '
            f"or pip install {name}"
        ) from None


def kind(values: tuple) -> type | None:
    """`int`, `float`, or None for a list to choose from, one value alone included."""
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    if not numbers or len(set(values)) < 2:
        return None
    return int if all(isinstance(v, int) for v in values) else float


def moves(problem: Problem, optimiser: str, numbers: bool = False) -> None:
    """Whether there is something that an optimiser can propose values for.

    Raises:
        ValueError: nothing is free by name, it has no range, or it is no number.
    """
    where = f"search {optimiser} of merge={problem.cell.names['merge']}"
    if not problem.space:
        raise ValueError(
            f"{where}: nothing has a name to propose values for: give the merge a grid, or free "
            "coefficients (search.family.groups=1)"
        )
    for name, values in problem.space.items():
        if not values:
            raise ValueError(f"{where}: {name} has no range: set values of its family")
        if numbers and kind(values) is None:
            raise ValueError(
                f"{where}: it moves numbers within a range, and {name} has {list(values)}: leave "
                "it out of merge.grid, or take search=optuna"
            )


def unit(values: tuple, x: float) -> Any:
    """A number between the ends from one between 0 and 1; an integer where all values are."""
    low, high = min(values), max(values)
    value = low + (high - low) * min(max(x, 0.0), 1.0)
    return round(value) if kind(values) is int else value


def share(values: tuple, value: Any) -> float:
    """Where a number lies between the ends; the middle for what does not."""
    low, high = min(values), max(values)
    return (value - low) / (high - low) if fits(values, value) else 0.5


def fits(values: tuple, value: Any) -> bool:
    """Whether a value lies in a range, or in a list to choose from."""
    if kind(values) is None:
        return value in values
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and min(values) <= value <= max(values)
