"""What a search has evaluated, by point and by the rows that it was scored on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from osrm_exp.record import digest
from osrm_exp.search.history import Entry, History

Point = dict[str, Any]


class Memory:
    """Every evaluation of a history, and those that are added to it.

    An entry names its `rows`, `[start, stop, step]`, where those were not all.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.known = {_key(one): one for one in history.entries if "point" in one}

    def __len__(self) -> int:
        return len(self.known)

    def find(self, point: Point, rows: slice | None = None) -> Entry | None:
        return self.known.get(_key({"point": point, **part(rows)}))

    def add(self, entry: Entry) -> None:
        """Out of the process at once."""
        self.history.append(entry)
        self.known[_key(entry)] = entry

    def best(self) -> Entry:
        """Of what was scored on all rows the best, the first of equals."""
        known = self.known.values()
        whole = [one for one in known if one["score"] is not None and "rows" not in one]
        return max(whole, key=lambda entry: entry["score"])


def part(rows: slice | None) -> dict[str, Any]:
    """What an entry says of the rows that it is of."""
    return {"rows": [rows.start, rows.stop, rows.step]} if rows else {}


def _key(entry: Mapping[str, Any]) -> str:
    rows = {"rows": entry["rows"]} if "rows" in entry else {}
    return digest([sorted(entry["point"].items(), key=lambda item: item[0]), rows])
