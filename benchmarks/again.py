"""A finished sweep run again, and the report over many cells, as the commands that a user types.

    python benchmarks/again.py [--cells 40] [--reported 400] [--repeats 5]

Cells are of MiniLM on the generated suite; their rows are real ones under the cells' own names, so
that nothing is computed. The alternative of the first is Hydra itself: the same sweep over the same
configs by a job that does nothing. That of the second is pandas: reading the rows as they lie and a
mean and a deviation for every line and task. Seconds are a core's, of the process and its children,
which other programs change least; commands take turns. Bars: 8 s and 2 s.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from itertools import cycle
from pathlib import Path

from scale import MODELS, make

from osrm_exp import CONF
from osrm_exp.compose import cell_from, configuration, sweep
from osrm_exp.report.rows import rows_in, write_rows

MERGES = (
    "average,task_arithmetic,ties,knots_ties,magmax,emr,dare,tsv,iso_c,core_ta,cart,breadcrumbs,"
    "model_stock,individual,pretrained,della,consensus,tall_mask,slerp,karcher"
)
NOTHING = """
import hydra
@hydra.main(version_base="1.3", config_path={conf!r}, config_name="config")
def job(config):
    pass
job()
"""
READ = """
import sys; from pathlib import Path
import pandas as pd
rows = pd.concat([pd.read_json(f, lines=True) for f in Path(sys.argv[1], "rows").glob("*.jsonl")])
means = rows[rows.headline == True].groupby(["line", "task"]).value.agg(["mean", "std"])
print(means.to_markdown())
"""


def finished(folder: Path, cells: int) -> list[str]:
    """The overrides of a sweep, all of whose cells are done."""
    places = [f"paths.{name}={folder / name}" for name in ("store", "results", "logs")]
    count = MERGES.count(",") + 1
    swept = [f"merge={MERGES}", f"seed=range({-(-cells // count)})", "model=minilm", "dataset=mini"]
    templates = cycle([rows_in(file) for file in sorted(MODELS.glob("*.jsonl"))])
    for overrides, rows in zip(sweep([*swept, *places]), templates):
        cell = cell_from(configuration(overrides))
        own = {"cell": cell.digest, "seed": cell.seed, "overrides": list(overrides)}
        write_rows(folder / "results", cell.digest, [{**row, **own} for row in rows])
    return [*swept, *places]


def seconds(*command: str) -> float:
    """Of a core, in the process and its children.

    Raises:
        CalledProcessError: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Prints the fastest of every command as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in {"cells": 40, "reported": 400, "repeats": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        given = finished(folder / "again", options.cells)
        make(folder / "many", 2 * options.reported, options.reported)
        rows = str(folder / "many" / "results")
        commands = {
            "finished cells again": ["-m", "osrm_exp", *given, "-m"],
            "Hydra, a job that does nothing": ["-c", NOTHING.format(conf=str(CONF)), *given, "-m"],
            "report": ["-m", "osrm_exp.report", rows],
            "pandas, means alone": ["-c", READ, rows],
            "import pandas, matplotlib": ["-c", "import pandas, matplotlib.pyplot"],
        }
        taken = [{n: seconds(*c) for n, c in commands.items()} for _ in range(options.repeats)]
    best = {name: round(min(one[name] for one in taken), 2) for name in commands}
    print(json.dumps({"options": vars(options), "seconds": best}, indent=2))


if __name__ == "__main__":
    main()
