"""What a store holds, and what of it no kept result refers to."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
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
        """Size of what lies in it, without what goes while we count."""
        total = 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                with suppress(FileNotFoundError):
                    total += os.stat(os.path.join(folder, name)).st_size
        return total

    @property
    def days(self) -> float:
        """Age of what lies in it; renaming does not renew that. 0 where it is gone."""
        with suppress(FileNotFoundError):
            return (time.time() - self.path.stat().st_mtime) / 86400
        return 0.0

    def remove(self) -> bool:
        """Out of reach first, so that a kill leaves no half artifact in its place.

        False where another process has removed it, or is building there since we looked; no lock
        is taken for it, which a full disk would refuse.
        """
        if not _idle(self.path):
            return False
        gone = self.path.with_name(f".{self.path.name.lstrip('.')}.gone")
        shutil.rmtree(gone, ignore_errors=True)  # of a removal that was interrupted
        try:
            self.path.rename(gone)
        except FileNotFoundError:
            return False
        with suppress(FileNotFoundError):  # another process may be at the same
            shutil.rmtree(gone)
        return True


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
        if _idle(path):
            yield Item(path, "its build was interrupted")


def _idle(path: Path) -> bool:
    """Whether nobody is building an artifact, which lies or once lay there."""
    if path.name.startswith("."):
        return Lock(path.with_suffix(".held")).dead()
    return Lock(path.with_name(f".{path.name}.held")).dead()


def garbage(store: Path, results: Iterable[Path], days: float) -> list[Item]:
    """What may go: older than `days` and of no use to the results in these folders.

    A row names the adapters and searches that it stands on, and their manifests what those need.
    A kind that no row names (statistics that a merge asked for) stays where it belongs to the model
    and the task of something that stays.

    Raises:
        ValueError: a folder without results, which would let everything go, or with damaged ones,
            which do not say what they stand on; a damaged manifest, which does not either.
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
    except ValueError as error:
        return {"needs": [], "inputs": {}, "damage": str(error)}


def _kept(found: Mapping[str, Mapping[str, Any]], named: set[str]) -> set[str]:
    direct = _direct(found, named)
    kept = _with_needs(direct, found)
    for place in sorted(kept & found.keys()):
        if why := found[place].get("damage"):
            raise ValueError(
                f"{place} stands behind a result and {why}, so what it needs is not known: a run "
                "that uses it builds it again; without its folder, what only it needs may go"
            )
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
