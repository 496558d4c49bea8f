"""Sweeps that are killed and crowds that share a store, held against an undisturbed run.

    python benchmarks/reliability.py kill --folder DIR --kills 100
    python benchmarks/reliability.py crowd --folder DIR --processes 8

`kill` starts a sweep with two workers again and again, kills its parent, a worker or all of them
at a random moment, and begins a new store when a sweep has come to its end. `crowd` starts
processes at once, whose 16 cells need the same four adapters. Both say whether every adapter was
built once and whether rows and weights are, bit for bit, those of the undisturbed run.

A sweep is a process that hands its cells to joblib's two workers, as Hydra's launcher does. It is
forked from one that has imported the libraries and composed the cells, so that a kill meets work.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import re
import signal
import time
from collections import Counter
from pathlib import Path

for name in ("OMP_NUM_THREADS", "TQDM_DISABLE"):
    os.environ[name] = "1"

from joblib import Parallel, delayed  # noqa: E402
from joblib.externals.loky.backend.context import set_start_method  # noqa: E402

from osrm_exp import artifacts, diagnostics, pipeline, signals  # noqa: E402, F401
from osrm_exp.artifacts import fine_tune  # noqa: E402, F401
from osrm_exp.bench import rows_of  # noqa: E402
from osrm_exp.compose import cell_from, configuration  # noqa: E402
from osrm_exp.job import _cell as finish  # noqa: E402

fork = multiprocessing.get_context("fork")

MERGES = tuple(
    (
        "average,task_arithmetic,ties,knots_ties,magmax,emr,dare,tsv,iso_c,core_ta,cart,breadcrumbs,"
        "model_stock,individual,pretrained,della"
    ).split(",")
)
CELLS = [
    "dataset=mini", "dataset.only=[sentiment,paraphrase,inference2,acceptability]", "model=minilm",
    "dataset.rows={train: 96, validation: 32}", "tuning.batch_size=16", "tuning.max_length=32",
    "tuning.precision=fp32",
]  # fmt: skip
LONG = ["dataset.only=[sentiment,paraphrase]", "tuning.epochs=8"]
VICTIMS = ("parent", "worker", "all")
VOLATILE = ("seconds", "merge_seconds", "sha256")
BUILT = re.compile(r"FineTune (\S+): built in")


def composed(merges: tuple[str, ...], *more: str) -> list[dict]:
    """The cells of a sweep over some merges; their rows are read, and found read by every fork."""
    found = [configuration([*CELLS, *more, f"merge={one}"]) for one in merges]
    rows_of(cell_from(found[0]))
    return found


def start(cells: list[dict], folder: Path, workers: int) -> multiprocessing.Process:
    """A process group of its own that finishes cells, with all it writes under a folder."""
    places = {name: str(folder / name) for name in ("store", "results", "logs")}
    there = [{**cell, "paths": places} for cell in cells]
    process = fork.Process(target=_program, args=(there, folder / "log", workers))
    process.start()
    return process


def _program(cells: list[dict], log: Path, workers: int) -> None:
    os.setsid()
    with log.open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    set_start_method("fork", force=True)  # of loky's workers
    with signals.one_sentence():
        Parallel(workers)(delayed(_job)(cell) for cell in cells)


def _job(cell: dict) -> None:
    signals.listen()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    finish(cell)


def ended(process: multiprocessing.Process, seconds: float | None = None) -> int | None:
    """The exit code of a process; None if it has none after so long."""
    process.join(seconds)
    return process.exitcode


def group(leader: int) -> list[int]:
    """The processes of a group that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, number = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended meanwhile
            continue
        if int(number) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)


def outcome(folder: Path) -> dict[str, dict]:
    """What must be equal: rows without their times, and the digest of every artifact's content."""
    rows = {
        file.name: [
            {k: v for k, v in json.loads(line).items() if k not in VOLATILE}
            for line in file.read_text().splitlines()
        ]
        for file in (folder / "results" / "rows").glob("*.jsonl")
    }
    manifests = (folder / "store").glob("*/[!.]*/manifest.json")
    return {"rows": rows, "content": {m.parent.name: json.loads(m.read_text())["content"]
                                      for m in manifests}}  # fmt: skip


def compared(folder: Path, undisturbed: dict[str, dict], log: Path) -> str:
    """One line: whether a folder holds what the undisturbed run made, each adapter built once."""
    found = outcome(folder)
    same = [what for what in found if found[what] == undisturbed[what]]
    twice = [name for name, count in Counter(BUILT.findall(log.read_text())).items() if count > 1]
    left = [p.name for p in (folder / "store").glob("*/.*") if p.is_dir()]
    return (
        f"{folder.name}: equal {same or 'nothing'}; built twice {twice or 'none'}; "
        f"left over {left or 'nothing'}; {len(found['rows'])} cells"
    )


def kill(folder: Path, kills: int, within: float, seed: int) -> None:
    """Kills sweeps until there were enough of it; goes on with an undisturbed run that is there."""
    draw, sweep = random.Random(seed), composed(MERGES[:4], *LONG)
    begin, calm = time.perf_counter(), folder / "undisturbed"
    calm.mkdir(parents=True, exist_ok=True)
    assert ended(start(sweep, calm, 2)) == 0, (calm / "log").read_text()
    undisturbed = outcome(calm)
    took = time.perf_counter() - begin
    print(f"undisturbed: {took:.0f} s, {len(undisturbed['rows'])} cells", flush=True)
    hits: Counter[str] = Counter()
    round_ = 0
    while sum(hits[who] for who in VICTIMS) < kills:
        round_ += 1
        here = folder / f"round{round_}"
        here.mkdir()
        done = False
        while not done:
            parent = start(sweep, here, 2)
            if sum(hits[who] for who in VICTIMS) < kills:
                done = not _struck(parent, draw.uniform(0.1, within), draw, here / "store", hits)
            else:
                done = ended(parent) == 0
        print(compared(here, undisturbed, here / "log"), flush=True)
        print(f"after {round_} sweeps: {dict(hits)}", flush=True)


def _struck(
    parent: multiprocessing.Process, seconds: float, draw: random.Random, store: Path, hits: Counter
) -> bool:
    """Kills something of a sweep after so many seconds; False if it had come to its end."""
    if (code := ended(parent, seconds)) is not None:
        return code != 0
    who = draw.choice(VICTIMS)
    alive = group(parent.pid)
    workers = [pid for pid in alive if pid != parent.pid and not _tracks(pid)]
    victims = {"parent": [parent.pid], "worker": workers[-1:] or [parent.pid], "all": alive}[who]
    hits["while a fine-tuning ran"] += any(store.glob("FineTune/.*.held"))
    hits["after its first epoch"] += any(store.glob("FineTune/.*.scratch/resume/last.ckpt"))
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    hits[who] += 1
    ended(parent)
    begin = time.monotonic()
    while group(parent.pid):
        time.sleep(0.1)
    if (waited := time.monotonic() - begin) > 10:
        print(f"processes outlived their parent by {waited:.0f} s")
    return True


def _tracks(pid: int) -> bool:
    """Whether it is loky's resource tracker, whose end ends nothing else."""
    try:
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def crowd(folder: Path, processes: int) -> None:
    """One process after another, then all at once."""
    each = len(MERGES) // processes
    cells = composed(MERGES, "tuning.epochs=2")
    shares = [cells[i * each : (i + 1) * each] for i in range(processes)]
    walls = {}
    for name, at_once in (("alone", False), ("crowd", True)):
        here = folder / name
        here.mkdir(parents=True)
        begin, busy = time.perf_counter(), _busy()
        crowd = []
        for share in shares:
            crowd.append(start(share, here, 1))
            if not at_once:
                ended(crowd[-1])
        codes = [ended(process) for process in crowd]
        walls[name] = time.perf_counter() - begin
        said = f"{walls[name]:.0f} s, {_busy() - busy:.0f} s of a core"
        print(f"{name}: {said}, exit codes {set(codes)}", flush=True)
    cores = min(len(os.sched_getaffinity(0)), processes)
    ratio = walls["crowd"] * cores / walls["alone"]
    print(compared(folder / "crowd", outcome(folder / "alone"), folder / "crowd" / "log"))
    print(f"{processes} processes on {cores} cores: {ratio:.2f} of the ideal wall time")


def _busy() -> float:
    """Seconds of a core that all processes took which have ended."""
    return os.times().children_user + os.times().children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("test", choices=["kill", "crowd"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--within", type=float, default=60.0, help="seconds to the next kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=8)
    options = parser.parse_args()
    if options.test == "kill":
        kill(options.folder, options.kills, options.within, options.seed)
    else:
        crowd(options.folder, options.processes)


if __name__ == "__main__":
    main()
