"""One lazy mapping for everything that is too large to be held whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

Item = TypeVar("Item")
Other = TypeVar("Other")


class Lazy(Mapping[str, Item]):
    """A mapping whose items are computed on every access and never kept."""

    def __init__(self, names: Iterable[str], compute: Callable[[str], Item]) -> None:
        self._names, self._compute = dict.fromkeys(names), compute

    def __getitem__(self, name: str) -> Item:
        if name not in self._names:
            raise KeyError(name)
        return self._compute(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def each(change: Callable[[str, Item], Other], items: Mapping[str, Item]) -> Lazy[Other]:
    """`change(name, item)` of every item, computed as the items are."""
    compute = items._compute if isinstance(items, Lazy) else items.__getitem__
    return Lazy(items, lambda name: change(name, compute(name)))
