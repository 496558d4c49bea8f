"""What merging costs beside the least it could: imports, compressed merges, Core Space as released.

    python benchmarks/costs.py [--repeats 5]

One thread, seconds of the processor, the least of repeats that take turns. `import` is a fresh
process; CtM stands beside TSV on the same adapters, at most `sweeps` of its alternation as the
defaults have them; Core Space stands beside its release's steps in float64 (thin SVDs of the
stacked factors and of every task's, aligned cores, TIES on them), without the lift to the delta and
with it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osrm_exp.lora import LowRank
from osrm_exp.merging.api import configured

OUT = Path(__file__).parents[1] / "results" / "benchmark_costs" / "table.md"
HEAD = "| what | size | ours | beside | its | ratio | bar |"
CHILD = """
import json, time, {module}
peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps([time.process_time(), int(peak[0].split()[1]) / 1024]))
"""


def adapters(tasks: int, rank: int, width: int) -> LowRank:
    g = torch.Generator().manual_seed(0)
    A = torch.randn(tasks, rank, width, generator=g) / width**0.5
    return LowRank(A, torch.randn(tasks, width, rank, generator=g) / width**0.5)


def imported(module: str) -> tuple[float, float]:
    """Seconds of the processor and MB of a fresh process."""
    code = [sys.executable, "-c", CHILD.format(module=module)]
    seconds, peak = json.loads(subprocess.run(code, capture_output=True, check=True).stdout)
    return seconds, peak


def clock(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def by_turns(repeats: int, *functions: Callable[[], object]) -> list[float]:
    """The least seconds of each."""
    times = [[clock(function) for function in functions] for _ in range(repeats)]
    return [min(column) for column in zip(*times)]


def method(name: str, given: LowRank, lift: bool = False) -> Callable[[], Any]:
    """The merge at scaling 1 where it has one; `lift` forms the delta."""
    chosen = configured(name)
    chosen = chosen.with_(scaling=1.0) if "scaling" in chosen.settings else chosen
    return lambda: chosen({"w": given})["w"].delta if lift else chosen({"w": given})["w"]


def released(given: LowRank, lift: bool) -> Callable[[], Any]:
    """Core Space's steps as its release takes them in float64, arXiv 2509.17786, with TIES."""

    def run() -> Tensor:
        A, B = given.A.double(), given.B.double()
        U, V = thin(B.transpose(0, 1).flatten(1))[0], thin(A.flatten(0, 1))[2].mT
        cores = []
        for a, b in zip(A, B):
            (U_b, S_b, V_b), (U_a, S_a, V_a) = thin(b), thin(a)
            middle = torch.diag(S_b) @ (V_b @ U_a) @ torch.diag(S_a)
            cores.append((U.mT @ U_b) @ middle @ (V_a @ V))
        merged = ties(torch.stack(cores))
        return U @ merged @ V.mT if lift else merged

    return run


def thin(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return U, S, Vh


def ties(x: Tensor, density: float = 0.2) -> Tensor:
    flat = x.flatten(1)
    drop = flat.shape[1] - int(flat.shape[1] * density)
    flat = flat * (flat.abs() >= flat.abs().kthvalue(drop, dim=1, keepdim=True).values)
    sign = flat.sum(0).sign()
    agree = flat * sign > 0
    return ((flat * agree).sum(0) / agree.sum(0).clamp(min=1)).view(x.shape[1:])


def row(what: str, size: str, ours: float, beside: str, its: float, bar: str) -> str:
    """A line of the table; a bar is the least `its / ours`, or the most `ours / its`."""
    ratio = its / ours if bar.startswith(">=") else ours / its
    passed = ratio >= float(bar[2:]) if bar.startswith(">=") else ratio <= float(bar[2:] or "inf")
    said = f"{bar}: {'pass' if passed else 'FAIL'}" if bar[2:] else "-"
    return f"| {what} | {size} | {ours:.3g} | {beside} | {its:.3g} | {ratio:.2f} | {said} |"


def imports(repeats: int) -> Iterator[str]:
    names = ("osrm_exp.merging", "torch")
    found = [[imported(name) for name in names] for _ in range(repeats)]
    for i, unit in enumerate(("s", "MB")):
        ours, its = (min(pair[j][i] for pair in found) for j in (0, 1))
        yield row(f"import, {unit}", "-", ours, "`import torch`", its, "<=1.25")


def compressed(repeats: int, tiny: bool) -> Iterator[str]:
    shapes = [(8, 16, 4096), (32, 16, 4096), (32, 8, 1024)]
    for tasks, rank, width in [(4, 2, 64)] if tiny else shapes:
        given = adapters(tasks, rank, width)
        ours, its = by_turns(repeats, method("ctm_ta", given), method("tsv", given))
        bar = "<=5" if tasks == 32 else "<="
        yield row("ctm_ta", f"{tasks} x rank {rank}, {width}", ours, "`tsv`", its, bar)


def core_space(repeats: int, tiny: bool) -> Iterator[str]:
    shape = (4, 2, 64) if tiny else (8, 16, 4096)
    given, size = adapters(*shape), "{} x rank {}, {}".format(*shape)
    for lift in (False, True):
        ours = method("core_ties", given, lift=lift)
        found = by_turns(repeats, ours, released(given, lift=lift))
        what = f"core_ties{', its delta' if lift else ''}"
        yield row(what, size, found[0], f"released{', its delta' if lift else ''}", found[1], ">=3")
    distance = (ours() - released(given, lift=True)()).norm() / ours().norm()
    yield row("core_ties, distance of the deltas", size, distance.item(), "-", 1.0, "<=")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes; writes no file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    machine = f"{os.cpu_count()} CPU cores, torch {torch.__version__}, one thread"
    command = " ".join(["python benchmarks/costs.py", *sys.argv[1:]])
    lines = ["# What merging costs beside the least it could", "", f"`{command}`: {machine}.", ""]
    lines += [__doc__.split("\n\n")[2].strip(), "", HEAD, "|" + "---|" * 7]
    repeats, tiny = given.repeats, given.tiny
    for part in (imports(repeats), compressed(repeats, tiny), core_space(repeats, tiny)):
        for line in part:
            lines.append(line)
            print(line, flush=True)
    if not tiny:
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
