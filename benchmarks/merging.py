"""Every data-free merge method on adapters of real shapes, beside its dense formula and PEFT.

    python benchmarks/merging.py [--threads 2] [--modules N] [--methods ties,tsv]

Each measurement is a forked process of its own: seconds are the best of up to five runs, memory is
what the first run adds to the resident set at its peak. Everyone starts from eight loaded adapters
in float32. A peer that takes longer than `--dense-limit` is stopped: then its ratio is a lower
bound, and a bar beyond it `open`. `same` is the relative distance of the two results on small
float64 adapters. Linux only.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from threadpoolctl import threadpool_limits
from torch import Tensor

from osrm_exp import CONF
from osrm_exp.adapter import stacked
from osrm_exp.lora import Dense, LowRank, Update
from osrm_exp.merging.api import configured

TASKS = 8
STOPPED = float("nan"), float("nan"), "stopped"
HEAD = "model method size ms MB result beside its_ms ratio its_MB ratio same bar".split()
SETUP = 5  # seconds for what a measurement prepares
OUT = Path(__file__).parents[1] / "results" / "benchmark_merging" / "table.md"
SLOW = ("wudi_adam", "doge_ta", "doge_ta_sgd")  # and the ill-posed *_dense: minutes
SVDS = ("knots_ties", "iso_c", "tsv", "core_ties", "core_tsv")  # bar: 500 times their peer

Adapters = Sequence[Mapping[str, LowRank]]
Run = Callable[[], Iterator[Update]]
Prepare = Callable[[Adapters], Run]  # its own time and memory are not measured


class Model(NamedTuple):
    name: str
    q: tuple[int, int]  # (out, in)
    v: tuple[int, int]
    rank: int


LLAMA = Model("Llama-3-8B", (4096, 4096), (1024, 4096), 16)
ROBERTA = Model("RoBERTa-large", (1024, 1024), (1024, 1024), 8)
SMALL = Model("small", (96, 96), (48, 96), 2)


def adapters(model: Model, modules: Sequence[str], dtype: torch.dtype) -> Adapters:
    """Random adapters; a module is named `q<layer>` or `v<layer>`."""
    g = torch.Generator().manual_seed(0)

    def update(m: int, n: int) -> LowRank:
        A, B = (torch.randn(model.rank, w, generator=g, dtype=dtype) / w**0.5 for w in (n, m))
        return LowRank(A, B.mT.contiguous())

    return [{name: update(*getattr(model, name[0])) for name in modules} for _ in range(TASKS)]


# Dense formulas at scaling 1: deltas [task, out, in] -> merged [*, out, in].


def ties(x: Tensor, density: float = 0.2) -> Tensor:
    flat = x.flatten(1)
    drop = flat.shape[1] - int(flat.shape[1] * density)
    flat = flat * (flat.abs() >= flat.abs().kthvalue(drop, dim=1, keepdim=True).values)
    sign = flat.sum(0).sign()
    sign[sign == 0] = sign.sum().sign()
    agree = flat * sign > 0
    return ((flat * agree).sum(0) / agree.sum(0).clamp(min=1)).view(x.shape[1:])


def knots_ties(x: Tensor) -> Tensor:
    U, S, Vh = svd(torch.cat(list(x), dim=1))
    return U @ ties((S[:, None] * Vh).unflatten(1, (len(x), -1)).transpose(0, 1))


def core_ties(x: Tensor) -> Tensor:
    """In other bases of the same spaces: those of the factors cannot be had from deltas."""
    U, V = svd(torch.cat(list(x), dim=1))[0], svd(torch.cat(list(x)))[2].mT
    return U @ ties(U.mT @ x @ V) @ V.mT


def iso_c(x: Tensor) -> Tensor:
    U, S, Vh = svd(x.sum(0))
    return S.mean() * U @ Vh


def tsv(x: Tensor) -> Tensor:
    U, S, Vh = zip(*map(svd, x))
    (P, _, Ph), (Q, _, Qh) = svd(torch.cat(U, dim=1)), svd(torch.cat(Vh).mT)
    return (P @ Ph * torch.cat(S)) @ (Q @ Qh).mT


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """At the numerical rank."""
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    keep = S > (1e-5 if S.dtype == torch.float32 else 1e-9) * S[0]
    return U[:, keep], S[keep], Vh[keep]


DENSE: dict[str, Callable[[Tensor], Tensor]] = {
    "task_arithmetic": lambda x: x.sum(0), "ties": ties,
    "dare": lambda x: (x * torch.empty_like(x).bernoulli_(0.5) / 0.5).sum(0),
    "magmax": lambda x: x.gather(0, x.abs().argmax(0, keepdim=True))[0],
    "consensus": lambda x: ((x.abs() > 0.4 * (x.sum(0) - x).abs()).sum(0) >= 2) * x.sum(0),
    "knots_ties": knots_ties, "core_ties": core_ties, "iso_c": iso_c, "tsv": tsv, "core_tsv": tsv,
}  # fmt: skip
PEFT = {"peft_dense_ties": "ties_svd", "peft_dense_prune": "magnitude_prune_svd"}
for kind in ("cat", "svd", "linear", "ties", "magnitude_prune", "dare_linear", "dare_ties"):
    PEFT[f"peft_{kind}"] = kind


def ours(name: str, cut: bool, given: Adapters) -> Run:
    method, rank = configured(name), next(iter(given[0].values())).rank
    method = method.with_(scaling=1.0) if "scaling" in method.settings else method

    def run() -> Iterator[Update]:
        merged = method(stacked(list(given[:2] if name == "slerp" else given)))
        for module in merged:
            yield merged[module].single.truncate(rank) if cut else merged[module]

    return run


def dense(name: str, given: Adapters) -> Run:
    return lambda: (Dense(DENSE[name](u.delta)) for u in stacked(list(given)).values())


def in_peft(name: str, given: Adapters) -> Run:
    """The same adapters in a stack of linear layers, by `add_weighted_adapter`."""
    first, tasks = list(given[0].values()), [str(task) for task in range(TASKS)]
    layers = [torch.nn.Linear(*u.shape[::-1], bias=False, dtype=u.A.dtype) for u in first]
    net, targets = torch.nn.Sequential(*layers), [str(i) for i in range(len(first))]
    lora = LoraConfig(r=first[0].rank, lora_alpha=first[0].rank, target_modules=targets)
    net = get_peft_model(net, lora, "0", autocast_adapter_dtype=False)
    for task, adapter in zip(tasks, given):
        if task != "0":
            net.add_adapter(task, lora)
        for layer, update in zip(net.base_model.model, adapter.values()):
            layer.lora_A[task].weight.data = update.A
            layer.lora_B[task].weight.data = update.B
    density, names = configured(name).settings.get("density"), iter("abcde")

    def run() -> Iterator[Update]:
        new = next(names)
        net.add_weighted_adapter(tasks, [1.0] * TASKS, new, PEFT[name], density=density)
        for layer in net.base_model.model:
            yield LowRank(layer.lora_A[new].weight.data, layer.lora_B[new].weight.data)

    return run


def forked(limit: float, function: Callable, *given):
    """`function(*given)` in a child, None if stopped. The parent never starts torch's threads."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: sender.send(function(*given)))
    child.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(limit + SETUP) else None
    finally:
        child.kill()
        child.join()


def cost(work: Prepare, model: Model, modules: list[str], threads: int) -> tuple[float, float, str]:
    """Seconds and megabytes of all modules, and the form of a result."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # scikit-learn's, which do not ask torch
    list(work(adapters(SMALL, modules, torch.float32))())  # pages code in, starts threads
    run = work(adapters(model, modules, torch.float32))
    Path("/proc/self/clear_refs").write_text("5")  # the high water starts again from here
    before, peak, times, form = high_water(), 0.0, [], ""
    while not times or (len(times) < 5 and sum(times) < 2):
        start = time.perf_counter()
        for update in run():
            form = "dense" if update.rank is None else f"rank {update.rank}"
            del update  # lazy results are held one at a time
        times.append(time.perf_counter() - start)
        peak = peak or high_water()
    return min(times), peak - before, form


def high_water() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def difference(mine: Prepare, peer: Prepare) -> float:
    torch.set_num_threads(1)
    given = adapters(SMALL, ["q0"], torch.float64)
    pair = [next(iter(run())) for run in (mine(given), peer(given))]
    a, b = (u.single.delta for u in pair)
    return ((a - b).norm() / b.norm()).item()


def measured(name: str, model: Model, modules: list[str], limit: float, threads: int) -> str:
    """A row of the table."""
    label, peer, cut = "-", None, PEFT.get(name, "").endswith("_svd")
    if name in DENSE:
        label, peer, modules = "dense formula", partial(dense, name), ["q0"]
    elif name in PEFT:
        label, peer = f"PEFT `{PEFT[name]}`", partial(in_peft, name)
        modules = ["v0"] if "svd" in PEFT[name] else modules
    mine = partial(ours, name, cut)
    size = " + ".join("{}x{}".format(*getattr(model, module[0])) for module in modules)
    seconds, peak, form = forked(limit, cost, mine, model, modules, threads) or STOPPED
    cells = [model.name, f"`{name}`", size, number(seconds * 1e3), number(peak), form, label]
    if not peer or form == "stopped":
        return row(*cells, *"------")
    found = forked(limit, cost, peer, model, modules, threads)
    its, its_peak, _ = found or (limit, *STOPPED[1:])
    ratio, memory, bound = its / seconds, its_peak / max(peak, 1), "" if found else "> "
    least = 1 if name in PEFT else 500 if name in SVDS else 4
    passed = ratio >= least and (name != "ties" or memory >= 4)
    applies = name in PEFT or (model == LLAMA and name in (*SVDS, "ties"))
    bar = f"{least}x: {'pass' if passed else 'open' if bound else 'FAIL'}" if applies else "-"
    same = "random" if "dare" in name else "other bases" if name == "core_ties" else None
    same = same or f"{forked(limit, difference, mine, peer):.0e}"
    times = bound + number(its * 1e3), bound + number(ratio)
    return row(*cells, *times, number(its_peak), number(memory), same, bar)


def number(value: float) -> str:
    return "-" if value != value else f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--modules", type=int, default=2, help="q and v by turns, layer by layer")
    parser.add_argument("--methods", help="a,b; default: all that need no data and end in seconds")
    parser.add_argument("--dense-limit", type=float, default=60, help="seconds a measurement")
    parser.add_argument("--small", action="store_true", help="tiny shapes; writes no file")
    given = parser.parse_args()
    names = sorted(file.stem for file in (CONF / "merge").glob("*.yaml"))
    quick = [
        n for n in names if not (n.endswith("_dense") or n in SLOW or configured(n).statistics)
    ]
    modules = [f"{'qv'[i % 2]}{i // 2}" for i in range(given.modules)]
    command = " ".join(["python benchmarks/merging.py", *sys.argv[1:]])
    machine = f"{os.cpu_count()} CPU cores, torch {torch.__version__}, {given.threads} threads"
    note = __doc__.split("\n\n")[2]
    lines = ["# Merge methods: time and memory", "", f"`{command}`: {machine}.", "", note, ""]
    lines += [row(*HEAD), "|" + "---|" * len(HEAD)]
    for model in [SMALL] if given.small else [LLAMA, ROBERTA]:
        for name in given.methods.split(",") if given.methods else quick:
            lines.append(measured(name, model, modules, given.dense_limit, given.threads))
            print(lines[-1], flush=True)
            if not given.small:  # row by row, so that what was measured outlives an interruption
                OUT.parent.mkdir(parents=True, exist_ok=True)
                OUT.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
