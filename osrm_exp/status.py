"""What of a sweep is done: `python -m osrm_exp.status results/X [outputs/X]`.

The sweeps are those that Hydra's logs tell of; a cell is known by its overrides, so nothing is
loaded and, but for cells whose rows were made by another spelling, nothing is composed.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from osrm_exp import signals
from osrm_exp.compose import cell_from, configuration
from osrm_exp.overrides import STUDY, public
from osrm_exp.report.rows import is_done, rows_file, rows_in
from osrm_exp.report.sealed import in_place
from osrm_exp.store.lock import Lock
from osrm_exp.sweeps import Overrides, Sweep, sweeps

RUN = "OSRM_EXP_RUN"  # names the command that a job belongs to, also where its log folder is shared
STATES = ("ok", "failed", "running", "interrupted", "missing")


@contextmanager
def told(folder: Path, overrides: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Keeps a job's `status.json`: who runs it, and in the end what the block made of it."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    status: dict[str, Any] = {"outcome": "running", "overrides": list(overrides)}
    status |= {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
    status["run"] = os.environ.get(RUN)
    (folder / "status.held").unlink(missing_ok=True)  # an attempt's that ended, perhaps elsewhere
    with Lock(folder / "status.held").held():
        _write(folder, status)
        status["outcome"] = "interrupted"
        try:
            yield status
        finally:
            _write(folder, {**status, "seconds": round(time.perf_counter() - start, 2)})


def states(
    cells: Iterable[Overrides], rows: Iterable[Mapping[str, Any]], results: Path, logs: Path
) -> dict[Overrides, tuple[str, str]]:
    """By cell, its state and what is to be said of it; `rows` are those of cells that are done."""
    done = {_key(row["overrides"]) for row in rows}
    cells, last = list(cells), _told(logs)
    strangers = done - {_key(cell) for cell in cells}
    found = {}
    for cell in cells:
        ok = _key(cell) in done or (strangers and _done_otherwise(cell, results))
        found[cell] = ("ok", "") if ok else _of(last.get(_key(cell)))
    return found


def _done(results: Path) -> list[dict[str, Any]]:
    """A row of every cell that is done."""
    files = sorted((results / "rows").glob("*.jsonl"))
    return [rows_in(file)[0] for file in files if is_done(file)]


def _key(overrides: Iterable[str]) -> Overrides:
    """What names a cell, wherever its files lie: its overrides as a row keeps them."""
    apart = ("paths.", STUDY)
    return tuple(sorted(public(o) for o in overrides if not o.lstrip("+").startswith(apart)))


def _told(logs: Path) -> dict[Overrides, Path]:
    """The last status of every cell, by overrides."""
    files = sorted(logs.rglob("status.json"), key=lambda file: file.stat().st_mtime)
    return {_key(read_status(file)["overrides"]): file for file in files}


def _of(file: Path | None) -> tuple[str, str]:
    if file is None:
        return "missing", ""
    status = read_status(file)
    if status["outcome"] == "failed":
        return "failed", status["reason"]
    if status["outcome"] in ("running", "interrupted"):
        lock = Lock(file.with_name("status.held"))
        if status["outcome"] == "running" and not lock.dead():
            return "running", lock.holder()
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(status["since"]))
        return "interrupted", f"begun {since} by process {status['pid']} on {status['host']}"
    return "missing", ""


def read_status(file: Path) -> dict[str, Any]:
    """What a job's file says; `unknown` where it was cut short."""
    known = {"outcome": "unknown", "overrides": [], "reason": "unknown"}
    try:
        return known | json.loads(file.read_text())
    except (ValueError, TypeError):  # cut short by a full disk or a kill
        return known


def _write(folder: Path, status: dict[str, Any]) -> None:
    with in_place(folder / "status.json") as scratch:
        scratch.write_text(json.dumps(status))


def _done_otherwise(cell: Overrides, results: Path) -> bool:
    """Whether another spelling of the same cell is done."""
    digest = cell_from(configuration(cell)).digest
    return is_done(rows_file(results, digest))


def logs_of(results: Path) -> Path:
    """Where the logs of a results folder lie unless somebody said otherwise."""
    for above in results.parents:
        if above.name == "results":
            return above.with_name("outputs") / results.relative_to(above)
    return Path("outputs", results.name)


def report(results: Path, logs: Path) -> str:
    """The lines for a results folder.

    Raises:
        ValueError: no sweep that wrote there is known.
    """
    known = sweeps(logs, results)
    if not known:
        raise ValueError(f"{logs} tells of no sweep into {results}: name the logs (paths.logs)")
    done = _done(results)
    found = states(dict.fromkeys(chain(*(one.cells for one in known))), done, results, logs)
    count = Counter(state for state, _ in found.values())
    summary = ", ".join(f"{count[state]} {state}" for state in STATES if count[state])
    lines = [f"{results}: {len(found)} cells: {summary}", *_studies(known)]
    left = {cell: told for cell, told in found.items() if told[0] != "ok"}
    if ahead := _ahead(left, known):
        time_left = _time(done, ahead, count["running"])
        lines += [*_left(left, found), time_left, "what is left:", *_again(left, known)]
    return "\n".join(lines)


def _studies(known: Iterable[Sweep]) -> Iterator[str]:
    for one in known:
        if one.study:
            yield f"  {one.study}: {one.complete} of {one.trials} trials are complete"


def _ahead(left: Collection[Overrides], known: Collection[Sweep]) -> int:
    """How many cells are to be run: a study proposes its own, and those that failed no more."""
    own = set(left) - set(chain(*(one.cells for one in known if one.study)))
    return len(own) + sum(max(0, one.trials - one.complete) for one in known)


def _left(left: Mapping[Overrides, tuple[str, str]], among: Iterable[Overrides]) -> Iterator[str]:
    """A line for every cell, without the overrides that all have."""
    several = [set(cell) for cell in among]
    shared = set.intersection(*several) if len(several) > 1 else set()
    for cell, (state, said) in left.items():
        own = " ".join(o for o in cell if o not in shared) or " ".join(cell)
        yield f"  {state:<11} {own}" + (f": {said}" if said else "")


def _again(left: Collection[Overrides], known: Iterable[Sweep]) -> list[str]:
    return [f"  {one.command}" for one in known if one.goes_on(left)]


def _time(done: Sequence[Mapping[str, Any]], left: int, at_once: int) -> str:
    if not done:
        return "no cell has finished yet, so nothing is known about the time"
    mean = sum(row["seconds"] for row in done) / len(done)
    total = mean * left / max(at_once, 1)
    how = f"{at_once} at once" if at_once > 1 else "one after the other"
    return f"about {total / 60:.0f} min: {left} cells {how}, {mean:.0f} s each as those before"


def unfinished(results: Path) -> str:
    """What a folder's tables lack, failed cells with their reasons; nothing where no log tells.

    A table is made from rows alone, and a cell without rows is no line of it.
    """
    try:
        text = report(results, logs_of(results))
    except ValueError:  # nobody's sweep: rows that came from elsewhere
        return ""
    return text if "\n" in text else ""


def main() -> int:
    """Reads the command line; what a user can mend is told in one sentence."""
    parser = argparse.ArgumentParser(prog="python -m osrm_exp.status", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("logs", type=Path, nargs="?", help="default: outputs/ in place of results/")
    options = parser.parse_args()
    try:
        print(report(options.results, options.logs or logs_of(options.results)))
    except (ValueError, OSError) as error:
        print(f"osrm_exp: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with signals.one_sentence("status changes nothing"):
        sys.exit(main())
