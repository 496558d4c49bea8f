"""Hydra callback: tells how far a sweep is, counts its cells and rebuilds its tables at its end."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from osrm_exp.compose import configuration
from osrm_exp.overrides import points
from osrm_exp.status import RUN, read_status

log = logging.getLogger("osrm_exp")
OUTCOMES = ("finished", "skipped", "failed")
Cells = list[tuple[str, ...]]


class Report(Callback):
    """`failed` counts this process's failed or lost cells, and one for a report that was not made;
    `cells` are those of its sweep, by their overrides."""

    failed = 0
    cells: Cells = []
    folder: Path | None = None  # of a sweep's logs
    next = 0.0  # when this process may look again how far its sweep is

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        sweeper, typed = config.hydra.sweeper, config.hydra.overrides.task
        Report.cells = [] if "n_trials" in sweeper else list(points(sweeper.params, typed))
        Report.folder = Path(config.hydra.sweep.dir)
        if "n_trials" in sweeper:  # Hydra's own sweeper does it, for `status`
            Report.folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(config, Report.folder / "multirun.yaml")
        self.total = sweeper.get("n_trials", len(Report.cells))
        self.shared = _shared(Report.cells)
        self.start = time.time()  # the callback itself goes to the workers

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        """A line after each cell of a sweep."""
        if "start" not in vars(self):
            return
        status = read_status(Path(config.hydra.runtime.output_dir) / "status.json")
        if status["outcome"] == "failed":
            log.error("failed: %s: %s", _own(status["overrides"], self.shared), status["reason"])
        if (begin := time.monotonic()) >= Report.next:
            found = _statuses(Path(config.hydra.sweep.dir))
            log.info("%s", progress([s["outcome"] for s in found], self.total, self.start))
            now = time.monotonic()
            Report.next = now + 20 * (now - begin)  # of ten thousand cells it takes a while

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        self._finish(config, Path(config.hydra.sweep.dir), len(Report.cells))

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        self._finish(config, Path(config.hydra.run.dir), 1)

    def _finish(self, config: DictConfig, folder: Path, total: int) -> None:
        Report.failed = 1  # Hydra swallows what a callback raises: until all is well it is not
        results = Path(config.paths.results)
        if config.note:
            print(f"\n{config.note}\n")
        finished = any(status["outcome"] == "finished" for status in _statuses(folder))
        problem = _write(results, draw=finished)
        bad = summary(folder, total)
        if problem:
            print(f"no tables: {problem}")
        else:
            print(f"tables: {results}/table.{{csv,md,tex}}   rows: {results}/rows/   "
                  f"adapters: {config.paths.store}")  # fmt: skip
        Report.failed = bad + bool(problem)

    @staticmethod
    def blamed(error: BaseException) -> str:
        """Which cell of a sweep it is that cannot be composed, in front of Hydra's own sentence."""
        if not isinstance(error, HydraException) or len(Report.cells) < 2:
            return ""
        shared = _shared(Report.cells)
        for cell in Report.cells:
            try:
                configuration(cell)
            except HydraException:
                return f"the cell {_own(cell, shared)}: "
        return ""


def summary(folder: Path, total: int) -> int:
    """Prints what became of a command's cells; returns how many failed or left nothing behind."""
    found = _statuses(folder)
    count = {k: [s for s in found if s["outcome"] == k] for k in OUTCOMES}
    lost = max(total, len(found)) - sum(map(len, count.values()))
    said = [f"{len(count[k])} {k}" for k in OUTCOMES] + ([f"{lost} lost"] if lost else [])
    print(f"\n{max(total, len(found))} cells: {', '.join(said)}")
    shared = _shared([tuple(s["overrides"]) for s in found])
    for status in count["failed"]:
        print(f"  failed: {_own(status['overrides'], shared)}: {status['reason']}")
    return len(count["failed"]) + lost


def progress(outcomes: list[str], total: int, start: float) -> str:
    """How many cells are done, and how long the others will take if they are like those."""
    done = [one for one in outcomes if one in OUTCOMES]
    left, worked = total - len(done), len(done) - done.count("skipped")
    if not left or not worked:
        return f"{len(done)} of {total}"
    seconds = (time.time() - start) / worked * left
    much = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
    return f"{len(done)} of {total}, about {much} left"


def _statuses(folder: Path) -> list[dict[str, Any]]:
    """What this command's jobs say of themselves, and no other's in the same folder."""
    files = (*folder.glob("status.json"), *folder.glob("*/status.json"))
    found = [read_status(file) for file in sorted(files)]
    return [status for status in found if status.get("run") in (None, os.environ.get(RUN))]


def _write(results: Path, *, draw: bool) -> str | None:
    """Writes and prints the report; what stood in the way, in a sentence."""
    if not any((results / "rows").glob("*.jsonl")):
        return f"{results}/rows holds no rows yet"
    from osrm_exp.report.report import write_report  # pandas: not at every start

    try:
        print(write_report(results, draw=draw))
    except (ValueError, OSError) as error:
        return " ".join(str(error).split())
    except Exception as error:  # a bug of ours takes no cell's summary along
        log.exception("the report of %s", results)
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _shared(cells: Cells) -> set[str]:
    """The overrides that all cells of a sweep have; of a single cell none."""
    return set.intersection(*map(set, cells)) if len(cells) > 1 else set()


def _own(overrides: Iterable[str], shared: set[str]) -> str:
    """What tells a cell from the others of its sweep."""
    return " ".join(o for o in overrides if o not in shared) or " ".join(overrides)
