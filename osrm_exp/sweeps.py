"""The commands that wrote into a results folder, as Hydra's logs and the studies there tell."""

from __future__ import annotations

import json
import shlex
import sqlite3
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf

from osrm_exp import searchpath
from osrm_exp.compose import sweep
from osrm_exp.report.sealed import in_place

Overrides = tuple[str, ...]
SQLITE = "sqlite:///"
COMPLETE = """select count(*) from trials join studies using (study_id)
where study_name = ? and state = 'COMPLETE'"""


@dataclass(frozen=True)
class Sweep:
    """A command that was given, and its cells; of a study those that it has begun."""

    command: str
    cells: tuple[Overrides, ...]
    study: str = ""
    trials: int = 0  # that it was told to complete
    complete: int = 0

    def goes_on(self, left: Collection[Overrides]) -> bool:
        """Whether the same command has something to do, where these cells are left."""
        return self.complete < self.trials if self.study else bool(set(self.cells) & set(left))


def sweeps(logs: Path, results: Path) -> list[Sweep]:
    """The commands that wrote into a results folder, the same one once."""
    found: dict[str, Sweep] = {}
    for folder in sorted({path.parent for path in logs.rglob("multirun.yaml")} | _single(logs)):
        try:
            if one := _sweep(folder, results):
                before = found[one.command].cells if one.study and one.command in found else ()
                cells = tuple(dict.fromkeys((*before, *one.cells)))
                found[one.command] = replace(one, cells=cells)
        except (HydraException, ValueError) as error:
            print(
                f"{folder} is left out, its command is none today: {' '.join(str(error).split())}"
            )
    return list(found.values())


def command(words: Sequence[str], *, many: bool) -> str:
    """What is typed to give a command again."""
    return shlex.join(["python", "-m", "osrm_exp", *words, *(["-m"] if many else [])])


def note_study(results: Path, name: str, words: Sequence[str], trials: int) -> None:
    """Keeps beside a study what it was told to do."""
    with in_place(results / f"{name}.json") as scratch:
        scratch.write_text(json.dumps({"command": command(words, many=True), "trials": trials}))


def _single(logs: Path) -> set[Path]:
    """The folders of runs that are no job of a sweep."""
    found = (path.parents[1] for path in logs.rglob(".hydra/overrides.yaml"))
    return {folder for folder in found if not (folder.parent / "multirun.yaml").is_file()}


def _sweep(folder: Path, results: Path) -> Sweep | None:
    many = (folder / "multirun.yaml").is_file()
    config: Any = OmegaConf.load(folder / ("multirun.yaml" if many else ".hydra/config.yaml"))
    if Path(config.paths.results).resolve() != results.resolve():
        return None
    if not many:
        typed = _overrides(folder)
        return Sweep(command(typed, many=False), (typed,))
    if "n_trials" in config.hydra.get("sweeper", ()):
        return _study(folder, config.hydra.sweeper, results)
    task, hydra = list(config.hydra.overrides.task), list(config.hydra.overrides.hydra)
    searchpath.typed(hydra)  # its own configs compose its cells
    given = [one for one in hydra if not one.startswith("hydra.mode=")]
    return Sweep(command([*task, *given], many=True), tuple(sweep(task)))


def _study(folder: Path, sweeper: Any, results: Path) -> Sweep | None:
    file = results / f"{sweeper.study_name}.json"
    if not file.is_file():  # nobody's: what it was told is not known
        return None
    told = json.loads(file.read_text())
    begun = sorted(folder.glob("*/.hydra/overrides.yaml"))
    cells = tuple(_overrides(path.parents[1]) for path in begun)
    complete = _complete(sweeper.storage, sweeper.study_name)
    return Sweep(told["command"], cells, sweeper.study_name, told["trials"], complete)


def _overrides(folder: Path) -> Overrides:
    return tuple(OmegaConf.load(folder / ".hydra" / "overrides.yaml"))


def _complete(storage: str, study: str) -> int:
    """How many trials of a study in an SQLite file are complete."""
    file = Path(storage.removeprefix(SQLITE)).absolute()
    if not storage.startswith(SQLITE) or not file.is_file():
        return 0
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as known:
        return known.execute(COMPLETE, (study,)).fetchone()[0]
