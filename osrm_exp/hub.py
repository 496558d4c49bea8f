"""What comes from the hub, and one sentence where it cannot be reached."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_lost: dict[str, str] = {}  # a hub out of reach costs its retries once, not once a cell


def fetched(source: str, load: Callable[[], T], instead: str) -> T:
    """`load()`, from the hub or its cache.

    Raises:
        ValueError: it cannot be had; says why and what to do `instead`.
    """
    if source not in _lost:
        try:
            return load()
        except (OSError, ValueError) as error:
            _lost[source] = (
                f"{source} could be had neither from the hub nor from its cache "
                f"({first_line(error)}); {instead}"
            )
    raise ValueError(_lost[source])


def first_line(error: Exception) -> str:
    """An error's first line, or its kind where it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
