"""What a large store and a large sweep cost, with artifacts and cells made small.

    python benchmarks/scale.py --folder DIR --artifacts 100000 --cells 10000

Makes a store and a sweep of the sizes 1/100, 1/10 and 1 of that, and times what every cell does as
it starts, `status`, `store verify`, `store gc` and the report; `exponent` is that of the last step
to ten times the size: 1 is proportional, 0 does not grow.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import math
import shutil
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from osrm_exp import status
from osrm_exp.record import Record, digest
from osrm_exp.report import callback
from osrm_exp.report.report import write_report
from osrm_exp.report.rows import is_done, rows_file, rows_in, write_rows
from osrm_exp.store import Store, manifest
from osrm_exp.store.__main__ import gc, verify

MODELS = Path(__file__).parents[1] / "results" / "minilm_glue" / "rows"  # real rows, to be varied
TASKS = 8


class Adapter(Record):
    """As large as a name, in the place of a fine-tuning."""

    model: str
    task: str
    seed: int

    @property
    def label(self) -> str:
        return f"{self.task}-s{self.seed}"

    def build(self, folder: Path, _: Any) -> None:
        (folder / "adapter.safetensors").write_text(self.digest)


def make(folder: Path, artifacts: int, cells: int) -> list[Adapter]:
    """A store and a finished sweep that refers to some of it; the adapters of one cell."""
    made = [Adapter(model="m", task=f"t{i % TASKS}", seed=i // TASKS) for i in range(artifacts)]
    for one in made:
        place = Path("Adapter", f"{one.label}-{one.digest}")
        (folder / "store" / place).mkdir(parents=True)
        one.build(folder / "store" / place, None)
        manifest.write(folder / "store" / place, one, str(place))
    templates = [rows_in(file) for file in sorted(MODELS.glob("*.jsonl"))]
    merges = list(dict.fromkeys(rows[0]["merge"] for rows in templates))
    templates = [rows for rows in templates if rows[0]["init"] == "gaussian"]
    sweep = [f"merge={','.join(merges)}", f"seed=range({math.ceil(cells / len(merges))})"]
    for number, rows in enumerate(islice(cycle(templates), cells)):
        seed = number // len(templates)
        _finish(folder, rows, number, seed, [one.digest for one in made[seed * TASKS :][:TASKS]])
    config = {
        "paths": {"results": str(folder / "results")},
        "hydra": {"overrides": {"task": sweep, "hydra": ["hydra.mode=MULTIRUN"]}},
    }
    OmegaConf.save(OmegaConf.create(config), folder / "logs" / "multirun.yaml")
    return made[:TASKS]


def _finish(
    folder: Path, rows: list[dict[str, Any]], number: int, seed: int, adapters: list[str]
) -> None:
    overrides = [f"merge={rows[0]['merge']}", f"seed={seed}"]
    cell = digest([number])
    own = {"cell": cell, "seed": seed, "overrides": overrides, "adapters": adapters}
    write_rows(folder / "results", cell, [{**row, **own} for row in rows])
    job = folder / "logs" / str(number)
    job.mkdir(parents=True)
    said = {"outcome": "finished", "overrides": overrides, "host": "h", "pid": 1, "since": 0}
    (job / "status.json").write_text(json.dumps(said))


def begin(folder: Path, adapters: list[Adapter]) -> None:
    """What a cell does before it works: is it done, are its adapters there and whole."""
    is_done(rows_file(folder / "results", hashlib.sha256(b"").hexdigest()[:16]))
    Store(folder / "store").get_all(adapters, None)


def measured(folder: Path, artifacts: int, cells: int) -> dict[str, float]:
    """Seconds by what is done."""
    adapters = make(folder, artifacts, cells)
    results, store = folder / "results", folder / "store"
    done: dict[str, Callable[[], Any]] = {
        "start of a cell": lambda: begin(folder, adapters),
        "a look how far it is": lambda: callback._statuses(folder / "logs"),
        "status": lambda: status.report(results, folder / "logs"),
        "store verify": lambda: verify(store),
        "store gc": lambda: gc(store, [results], 0.0, False),
        "report": lambda: write_report(results, draw=False),
    }
    return {name: _seconds(action) for name, action in done.items()}


def _seconds(action: Callable[[], Any]) -> float:
    """Of a core, since a machine may have much else to do."""
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        action()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--artifacts", type=int, default=100_000)
    parser.add_argument("--cells", type=int, default=10_000)
    options = parser.parse_args()
    found = []
    for part in (100, 10, 1):
        here = options.folder / f"one_in_{part}"
        found.append(measured(here, options.artifacts // part, options.cells // part))
        shutil.rmtree(here)
        print(f"1/{part}: " + ", ".join(f"{k} {v:.3f} s" for k, v in found[-1].items()), flush=True)
    for name, whole in found[2].items():
        exponent = math.log10(whole / found[1][name])
        print(
            f"| {name} | "
            + " | ".join(f"{one[name]:.3f}" for one in found)
            + f" | {exponent:.2f} |"
        )


if __name__ == "__main__":
    main()
