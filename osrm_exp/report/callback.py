"""Hydra callback: counts the cells of a sweep and rebuilds its tables when it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

OUTCOMES = ("finished", "skipped", "failed")


class Report(Callback):
    """`failed` counts this process's failed cells, and one for a report that was not made."""

    failed = 0

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        self._finish(config, Path(config.hydra.sweep.dir))

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        self._finish(config, Path(config.hydra.run.dir))

    def _finish(self, config: DictConfig, folder: Path) -> None:
        Report.failed = 1  # Hydra swallows what a callback raises: until all is well it is not
        found = [json.loads(file.read_text()) for file in sorted(folder.rglob("status.json"))]
        results = Path(config.paths.results)
        problem = _write(results)
        count = {k: [s for s in found if s["outcome"] == k] for k in OUTCOMES}
        print(f"\n{len(found)} cells: " + ", ".join(f"{len(count[k])} {k}" for k in OUTCOMES))
        for status in count["failed"]:
            told = " ".join(_own(status["overrides"], found))
            print(f"  failed: {told}: {status.get('reason', 'interrupted')}")
        if problem:
            print(f"no tables: {problem}")
        else:
            print(f"tables: {results}/table.{{csv,md,tex}}   rows: {results}/rows/   "
                  f"adapters: {config.paths.store}")  # fmt: skip
        Report.failed = len(count["failed"]) + bool(problem)


def _write(results: Path) -> str | None:
    """Writes and prints the report; what stood in the way, in a sentence."""
    if not any((results / "rows").glob("*.jsonl")):
        return f"{results}/rows holds no rows yet"
    from osrm_exp.report.report import write_report  # pandas: not at every start

    try:
        print(write_report(results))
    except (ValueError, OSError) as error:
        return " ".join(str(error).split())
    return None


def _own(overrides: list[str], cells: list[dict[str, Any]]) -> list[str]:
    """What tells a cell from the others of its sweep."""
    others = [set(cell["overrides"]) for cell in cells]
    shared = set.intersection(*others) if len(others) > 1 else set()
    return [o for o in overrides if o not in shared] or overrides
