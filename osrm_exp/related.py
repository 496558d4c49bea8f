"""Whether adapters have to do with each other: modules, shapes, the base model they name."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from osrm_exp.lora import LowRank


def check_related(adapters: Sequence[Mapping[str, LowRank]], names: Sequence[str]) -> None:
    """Every adapter must have updates, and every two of them a module, of one shape, in common.

    Raises:
        ValueError: they have not; names the two, and where their modules' names part.
    """
    for name, adapter in zip(names, adapters):
        if not adapter:
            raise ValueError(f"{name} has no update: there is nothing to merge")
    for (one, first), (other, second) in combinations(zip(names, adapters), 2):
        shared = first.keys() & second.keys()
        if not shared:
            raise ValueError(f"{one} and {other} share no module: {_strangers(first, second)}")
        for module in sorted(shared):
            if first[module].shape != second[module].shape:
                raise ValueError(
                    f"{module} is {first[module].shape} (out, in) in {one} and "
                    f"{second[module].shape} in {other}: they are adapters of two models"
                )


def _strangers(first: Iterable[str], second: Iterable[str]) -> str:
    """Where the names of two adapters part: at the two that are most alike."""
    ends = {end: name for name in second for end in _ends(name)}
    common = [(end, name) for name in first for end in _ends(name) if end in ends]
    if not common:
        return f"{next(iter(first))} and {next(iter(second))} are of two models"
    end, name = max(common, key=lambda pair: pair[0].count("."))
    return (
        f"the nearest are {name} and {ends[end]}, with the prefixes {name.removesuffix(end)!r} and "
        f"{ends[end].removesuffix(end)!r}; merge adapters of one base model, or rename a prefix"
    )


def _ends(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


def warn_of_bases(bases: Mapping[str, str | None]) -> None:
    """Warns where adapters, by name, name different base models."""
    known = [(name, base) for name, base in bases.items() if base]
    others = [(name, base) for name, base in known if base != known[0][1]]
    if others:
        (one, first), (other, second) = known[0], others[0]
        warnings.warn(
            f"{one} was trained on {first} and {other} on {second}: their sum has a meaning only "
            "if the two hold the same weights",
            stacklevel=4,  # whoever called merge
        )
