"""Sweeps that are killed and crowds that share a store, held against an undisturbed run.

    python benchmarks/reliability.py kill --folder DIR --kills 100
    python benchmarks/reliability.py crowd --folder DIR --processes 8

`kill` starts a sweep with two workers again and again, kills its parent, a worker or all of them
at a random moment, and begins a new store when a sweep has come to its end. `crowd` starts
processes at once, whose 16 cells need the same four adapters. Both say whether every adapter was
built once and whether rows and weights are, bit for bit, those of the undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

MERGES = (
    "average,task_arithmetic,ties,knots_ties,magmax,emr,dare,tsv,iso_c,core_ta,cart,breadcrumbs,"
    "model_stock,individual,pretrained,della"
).split(",")
CELLS = [
    "dataset=mini", "dataset.only=[sentiment,paraphrase,inference2,acceptability]", "model=minilm",
    "dataset.rows={train: 192, validation: 64}", "tuning.batch_size=16", "tuning.max_length=32",
    "tuning.precision=fp32",
]  # fmt: skip
VOLATILE = ("seconds", "sha256", "overrides")  # overrides hold the paths
BUILT = re.compile(r"FineTune (\S+): built in")


def command(folder: Path, merges: list[str], epochs: int, *more: str) -> list[str]:
    """The sweep over some merges, with all it writes under a folder."""
    places = [f"paths.{k}={folder / k}" for k in ("store", "results")]
    name = f"paths.logs={folder / 'logs' / str(time.monotonic_ns())}"  # never shared
    cells = [*CELLS, f"tuning.epochs={epochs}", f"merge={','.join(merges)}"]
    return [sys.executable, "-m", "osrm_exp", *cells, *places, name, *more, "-m"]


def start(line: list[str], log: Path) -> subprocess.Popen:
    """A process group of its own, whose output is appended to a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    with log.open("a") as out:
        return subprocess.Popen(
            line, stdout=out, stderr=out, start_new_session=True, env=environment
        )


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


def kill(folder: Path, kills: int, seed: int) -> None:
    """Kills sweeps until there were enough of it."""
    draw, sweep = random.Random(seed), (MERGES[:6], 6, "hydra/launcher=parallel")
    begin = time.perf_counter()
    calm = folder / "undisturbed"
    calm.mkdir(parents=True)
    start(command(calm, *sweep), calm / "log").wait()
    whole, undisturbed = time.perf_counter() - begin, outcome(calm)
    print(f"undisturbed: {whole:.0f} s, {len(undisturbed['rows'])} cells", flush=True)
    hits: Counter[str] = Counter()
    round_ = 0
    while hits.total() < kills:
        round_ += 1
        here = folder / f"round{round_}"
        here.mkdir()
        ended = False
        while not ended:
            parent = start(command(here, *sweep), here / "log")
            if hits.total() < kills:
                ended = not _struck(parent, draw, whole, hits)
            else:
                ended = parent.wait() == 0
        print(compared(here, undisturbed, here / "log"), flush=True)
    print(f"{hits.total()} kills: {dict(hits)}")


def _struck(parent: subprocess.Popen, draw: random.Random, whole: float, hits: Counter) -> bool:
    """Kills something of a sweep at a random moment; False if it had come to its end."""
    try:
        return parent.wait(timeout=draw.uniform(0.1, whole)) != 0
    except subprocess.TimeoutExpired:
        pass
    who = draw.choice(["parent", "worker", "all"])
    alive = group(parent.pid)
    others = [pid for pid in alive if pid != parent.pid]
    victims = {"parent": [parent.pid], "worker": others[-1:] or [parent.pid], "all": alive}[who]
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    hits[who] += 1
    parent.wait()
    begin = time.monotonic()
    while group(parent.pid):
        time.sleep(0.1)
    if (waited := time.monotonic() - begin) > 10:
        print(f"processes outlived their parent by {waited:.0f} s")
    return True


def crowd(folder: Path, processes: int) -> None:
    """One process after another, then all at once."""
    each = len(MERGES) // processes
    shares = [MERGES[i * each : (i + 1) * each] for i in range(processes)]
    walls = {}
    for name, at_once in (("alone", False), ("crowd", True)):
        here = folder / name
        here.mkdir(parents=True)
        begin = time.perf_counter()
        crowd = []
        for share in shares:
            crowd.append(start(command(here, share, 2), here / "log"))
            if not at_once:
                crowd[-1].wait()
        codes = [process.wait() for process in crowd]
        walls[name] = time.perf_counter() - begin
        print(f"{name}: {walls[name]:.0f} s, exit codes {set(codes)}", flush=True)
    cores = min(len(os.sched_getaffinity(0)), processes)
    ratio = walls["crowd"] * cores / walls["alone"]
    print(compared(folder / "crowd", outcome(folder / "alone"), folder / "crowd" / "log"))
    print(f"{processes} processes on {cores} cores: {ratio:.2f} of the ideal wall time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("test", choices=["kill", "crowd"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=8)
    options = parser.parse_args()
    if options.test == "kill":
        kill(options.folder, options.kills, options.seed)
    else:
        crowd(options.folder, options.processes)


if __name__ == "__main__":
    main()
