"""How time and memory grow with tasks, rank, width, rows, cells and the size of a store.

    python benchmarks/growth.py --out results/benchmark_growth

One size doubles while all others stand (`BASE`). A time is the fastest of several, a core's, in a
forked process of one thread; memory is what a first run adds to the resident set at its peak. The
exponent of either is the slope of a line through the three largest sizes on logarithmic axes: below
them fixed costs are seen. Beside it stands what counting operations gives. Writes `numbers.json`,
`table.md` and `growth.svg`. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scale
import torch
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits
from torch import nn

from osrm_exp import statistics
from osrm_exp.inits import eigen
from osrm_exp.lora import LowRank, stack
from osrm_exp.merging.api import configured
from osrm_exp.report.report import write_report
from osrm_exp.store.__main__ import gc

fork = multiprocessing.get_context("fork")
BASE = {"tasks": 8, "rank": 8, "width": 768, "rows": 4096}
SIZES = {
    "tasks": (2, 4, 8, 16, 32), "rank": (4, 8, 16, 32, 64), "width": (384, 768, 1536, 3072, 4096),
    "rows": (1024, 2048, 4096, 8192, 16384), "cells": (50, 100, 200, 400, 800),
    "artifacts": (500, 1000, 2000, 4000, 8000),
}  # fmt: skip
FACTORED = {"tasks": "2 to 3", "rank": "2 to 3", "width": "1"}  # R²w + R³ of R = tasks · rank
EXPECTED = {  # of the time; a range where a term takes over
    "task_arithmetic": {"tasks": "1", "rank": "1", "width": "1"},
    "knots_ties": FACTORED, "tsv": FACTORED,
    "ties": {"tasks": "1", "rank": "0 to 1", "width": "2"},
    "token gram": {"width": "2", "rows": "1"},
    "8 smallest eigenpairs": {"width": "2 to 3"},
    "report": {"cells": "1"},
    "store gc": {"artifacts": "1"},
    "start of a cell": {"artifacts": "0"},
}  # fmt: skip
MERGES = ("task_arithmetic", "knots_ties", "tsv", "ties")
ENOUGH = 0.4  # seconds of repeats


class Point(NamedTuple):
    """One measurement."""

    work: str
    size: str
    value: int
    seconds: float
    megabytes: float


def merge(name: str, tasks: int, rank: int, width: int, **_: int) -> Callable[[], Any]:
    """One square module of random adapters."""
    each = [LowRank(torch.randn(rank, width), torch.randn(width, rank)) for _ in range(tasks)]
    stacks, method = {"w": stack(each)}, configured(name)
    return lambda: method(stacks)["w"].parts


def token_gram(width: int, rows: int, **_: int) -> Callable[[], Any]:
    """Of one linear module, in batches of 512 tokens."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(width, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    batches = [{"x": torch.randn(16, 32, width)} for _ in range(rows // 512)]
    how = {"level": "token", "include_padding": False}
    return lambda: statistics.gram(Net().eval(), batches, ["layer"], **how)


def eigenpairs(width: int, **_: int) -> Callable[[], Any]:
    """Of a decaying spectrum."""
    X = torch.randn(width + 64, width, dtype=torch.float64) * torch.linspace(-8, 0, width).exp()
    G = X.T @ X
    return lambda: eigen.smallest(G, 8)


def sweep(action: str, folder: Path, cells: int = 50, artifacts: int = 500) -> Callable[[], Any]:
    """What is asked of a store and of results, beside the start of a cell."""
    adapters = scale.make(folder, artifacts, cells)
    results, store = folder / "results", folder / "store"
    return {
        "report": lambda: write_report(results, draw=False),
        "store gc": lambda: gc(store, [results], 0.0, False),
        "start of a cell": lambda: scale.begin(folder, adapters),
    }[action]


def prepared(work: str, size: str, value: int, folder: Path) -> Callable[[], Any]:
    """What is measured, at one size."""
    if size in ("cells", "artifacts"):
        return sweep(work, folder, **{size: value})
    sizes = {**BASE, size: value}
    if work in MERGES:
        return merge(work, **sizes)
    return {"token gram": token_gram, "8 smallest eigenpairs": eigenpairs}[work](**sizes)


def measure(send: Any, work: str, size: str, value: int) -> None:
    """Sends the seconds of the fastest run, and the bytes that the first one adds."""
    folder = Path(tempfile.mkdtemp())
    torch.set_num_threads(1)
    with threadpool_limits(1):
        run = prepared(work, size, value, folder)
        _clear_peak()
        before, taken = _status("VmRSS"), []
        while not taken or (sum(taken) < ENOUGH and len(taken) < 30):
            start = time.process_time()
            with contextlib.redirect_stdout(io.StringIO()):
                found = run()
            taken.append(time.process_time() - start)
            if len(taken) == 1:
                added = _status("VmHWM") - before
            del found
    shutil.rmtree(folder)
    send.send((min(taken), added / 1e6))


def _clear_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    """Bytes of this process."""
    (line,) = (s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(name))
    return 1024 * int(line.split()[1])


def points() -> Iterator[Point]:
    """Every measurement, in a process of its own."""
    for work, sizes in EXPECTED.items():
        for size in sizes:
            for value in SIZES[size]:
                receive, send = fork.Pipe(duplex=False)
                process = fork.Process(target=measure, args=(send, work, size, value))
                process.start()
                send.close()
                point = Point(work, size, value, *receive.recv())
                process.join()
                print(*point, flush=True)
                yield point


def exponent(values: list[int], numbers: list[float]) -> float:
    """The slope through the three largest sizes, on logarithmic axes."""
    x, y = np.log(values[-3:]), np.log(np.maximum(numbers[-3:], 1e-9))
    return float(np.polyfit(x, y, 1)[0])


def table(found: list[Point]) -> str:
    """Markdown: first and last numbers of every curve, fitted exponents beside expected ones."""
    lines = ["| work | grows | from … to | seconds | MB | exponent | expected | of memory |"]
    lines.append("|" + "---|" * 8)
    for (work, size), curve in curves(found).items():
        values, seconds, memory = zip(*[(p.value, p.seconds, p.megabytes) for p in curve])
        lines.append(
            f"| {work} | {size} | {values[0]} … {values[-1]} | {seconds[0]:.2g} … {seconds[-1]:.2g}"
            f" | {memory[0]:.0f} … {memory[-1]:.0f} | {exponent(values, seconds):.2f} "
            f"| {EXPECTED[work][size]} | {_memory(values, memory)} |"
        )
    return "\n".join(lines)


def _memory(values: list[int], memory: list[float]) -> str:
    """Its exponent, where it can be told from what a process adds anyway."""
    return f"{exponent(values, memory):.2f}" if memory[-3] > 8 else "—"


def curves(found: list[Point]) -> dict[tuple[str, str], list[Point]]:
    """The points of every work and size."""
    told: dict[tuple[str, str], list[Point]] = {}
    for point in found:
        told.setdefault((point.work, point.size), []).append(point)
    return told


def drawn(found: list[Point]) -> Figure:
    """A panel a size, a line a work; its exponent stands in the legend."""
    figure = Figure(figsize=(10.5, 8), layout="constrained")
    panels = dict(zip(SIZES, figure.subplots(2, 3).flat))
    for (work, size), curve in curves(found).items():
        values, seconds = [p.value for p in curve], [p.seconds for p in curve]
        label = f"{work}: {exponent(values, seconds):.1f} ({EXPECTED[work][size]})"
        panels[size].plot(values, seconds, marker="o", markersize=3, label=label)
    for size, ax in panels.items():
        ax.set(xscale="log", yscale="log", xlabel=size, ylabel="seconds of a core")
        ax.set_xticks(SIZES[size], [str(v) for v in SIZES[size]], rotation=45)
        ax.minorticks_off()
        ax.yaxis.set_major_formatter("{x:g}")
        ax.legend(
            fontsize=7, title="exponent (expected)", title_fontsize=7, frameon=False,
            loc="upper center", bbox_to_anchor=(0.5, -0.3),
        )  # fmt: skip
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    found = list(points())
    out.mkdir(parents=True, exist_ok=True)
    (out / "numbers.json").write_text(json.dumps([p._asdict() for p in found], indent=1) + "\n")
    (out / "table.md").write_text(table(found) + "\n")
    drawn(found).savefig(out / "growth.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
