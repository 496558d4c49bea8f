"""What a store holds, and what of it no kept result refers to."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osrm_exp.report.sealed import unsealed
from osrm_exp.store import manifest
from osrm_exp.store.lock import Lock

DIGEST = re.compile(r'"([0-9a-f]{16})"')


@dataclass(frozen=True)
class Item:
    """A folder of a store; `why` says what is to be said of it."""

    path: Path
    why: str = ""

    @property
    def bytes(self) -> int:
        return sum(p.stat().st_size for p in self.path.rglob("*") if p.is_file())

    @property
    def days(self) -> float:
        """Age of what lies in it; renaming does not renew that."""
        return (time.time() - self.path.stat().st_mtime) / 86400

    def remove(self) -> None:
        """Out of reach first, so that a kill leaves no half artifact in its place."""
        gone = self.path.with_name(f".{self.path.name.lstrip('.')}.gone")
        shutil.rmtree(gone, ignore_errors=True)  # of a removal that was interrupted
        self.path.rename(gone)
        shutil.rmtree(gone)


def artifacts(store: Path) -> Iterator[Item]:
    """All artifacts, by kind and name.

    Raises:
        ValueError: there is no such folder.
    """
    if not store.is_dir():
        raise ValueError(f"{store} is not a folder: name the store, paths.store of the runs")
    for path in sorted(store.glob("*/[!.]*")):
        if path.is_dir() and path.parent.name != "damaged":
            yield Item(path)


def left_over(store: Path) -> Iterator[Item]:
    """What damaged artifacts, killed builds and removals left behind."""
    for path in sorted(store.glob("damaged/*/*")):
        yield Item(path, "it was damaged, and set aside")
    for path in sorted(store.glob("*/.*.gone")):
        yield Item(path, "its removal was interrupted")
    for path in sorted(store.glob("*/.*.scratch")):
        if Lock(path.with_suffix(".held")).dead():
            yield Item(path, "its build was interrupted")


def garbage(store: Path, results: Iterable[Path], days: float) -> list[Item]:
    """What may go: older than `days` and of no use to the results in these folders.

    A row names the adapters and searches that it stands on, and their manifests what those need.
    A kind that no row names (statistics that a merge asked for) stays where it belongs to the model
    and the task of something that stays.

    Raises:
        ValueError: a folder without results, which would let everything go, or with damaged ones,
            which do not say what they stand on.
    """
    named = set().union(*(_named(folder) for folder in results))
    items = {f"{i.path.parent.name}/{i.path.name}": i for i in artifacts(store)}
    found = {place: _manifest(item.path) for place, item in items.items()}
    kept = _kept(found, named)
    unused = [Item(i.path, "no result needs it") for p, i in items.items() if p not in kept]
    return [item for item in (*left_over(store), *unused) if item.days >= days]


def _named(results: Path) -> set[str]:
    files = sorted(results.rglob("*.jsonl"))
    if not files:
        raise ValueError(f"{results} holds no rows: name the results folders that are to be kept")
    lines = (line.decode() for file in files for line in unsealed(file))
    return set().union(*map(DIGEST.findall, lines))


def _manifest(folder: Path) -> Mapping[str, Any]:
    try:
        return manifest.read(folder)
    except ValueError:
        return {"needs": [], "inputs": {}}


def _kept(found: Mapping[str, Mapping[str, Any]], named: set[str]) -> set[str]:
    direct = _direct(found, named)
    kept = _with_needs(direct, found)
    subjects = {_subject(found[place]) for place in kept & set(found)}
    kinds = {_kind(place) for place in direct}
    return kept | {
        place for place, of in found.items()
        if _kind(place) not in kinds and _subject(of) in subjects and kept.issuperset(of["needs"])
    }  # fmt: skip


def _direct(found: Mapping[str, Any], named: set[str]) -> set[str]:
    direct = {place for place in found if place.rpartition("-")[2] in named}
    if found and not direct:
        raise ValueError("the rows name nothing of this store: is it theirs?")
    return direct


def _with_needs(places: set[str], found: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Places with what they need, and what that needs."""
    kept = set(places)
    while more := {n for p in kept & found.keys() for n in found[p]["needs"]} - kept:
        kept |= more
    return kept


def _kind(place: str) -> str:
    return place.partition("/")[0]


def _subject(found: Mapping[str, Any]) -> str:
    """The model and the task that a product is of."""
    return json.dumps([found["inputs"].get(key) for key in ("model", "task")], sort_keys=True)
