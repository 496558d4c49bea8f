"""What a search costs beside the passes that it cannot do without, on a real network.

    python benchmarks/search.py --model DIR [--tasks 8] [--rows 64] [--evaluations 12]

Three ratios, timed in turn so that a busy machine slows both alike: candidates of task arithmetic
and of TIES beside bare forward passes over the same rows, and a gradient step of layer-wise
AdaMerging beside a forward and a backward of the same batches. Adapters and rows are random:
neither changes a time. Seconds are a core's. Bars: 1.05 and 1.10 for the candidates.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from osrm_exp.bench import Bench
from osrm_exp.lora import LowRank
from osrm_exp.model import adapted_modules, heads_of, load_backbone
from osrm_exp.placing import applied
from osrm_exp.record import build
from osrm_exp.search.history import History
from osrm_exp.search.problem import Problem
from osrm_exp.spec import Merge, Model, Search
from osrm_exp.tasks.kinds import classification, logits

COEFFICIENTS = {
    "_target_": "osrm_exp.search.Coefficients", "groups": "module", "per_task": True,
    "grain": "update", "start": 0.3, "values": [0.0, 1.0], "penalty": 0.0, "weights": None,
    "normalize": False,
}  # fmt: skip
TIES = {
    "density": 0.2, "granularity": "tensor", "counting": "kthvalue", "total_parameters": None,
    "merge": "mean",
}  # fmt: skip
ENTROPY = {"_target_": "osrm_exp.search.Entropy", "normalize": True, "split": "tune"}


class Rows:
    """Random tokens of one task, with two classes."""

    def __init__(self, count: int, length: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(1000, 20000, (count, length), generator=generator)
        self.tune = self.train = self.validation = list(ids)

    def batches(self, _: str, size: int, rows: int | None = None) -> list[dict]:
        chosen = self.tune[:rows]
        return [self.collate(chosen[i : i + size]) for i in range(0, len(chosen), size)]

    def collate(self, rows: list, _: int | None = None) -> dict:
        ids = torch.stack(rows)
        labels = torch.arange(len(rows)) % 2
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    def numbers(self, _: str) -> list[int]:
        return list(range(len(self.tune)))


def network_of(path: str) -> tuple[torch.nn.Module, dict, dict]:
    """The network, its query and value modules, and its heads."""
    model = Model(
        name="bert", path=path, blocks={"q": "query", "v": "value"},
        heads=("pooler", "classifier"), attention="eager", weights="",
    )  # fmt: skip
    net = load_backbone(model, 2, precision="fp32").eval().requires_grad_(False)
    return net, adapted_modules(net, model, ["q", "v"]), heads_of(net, model)


def bench_of(
    net: torch.nn.Module, modules: dict, heads: dict, options: argparse.Namespace
) -> Bench:
    """A bench without a store."""
    generator, bench = torch.Generator().manual_seed(0), object.__new__(Bench)
    task = {"kind": classification, "outputs": 2, "headline": "accuracy", "labels": ("a", "b")}
    bench.tasks = [SimpleNamespace(name=f"t{i}", **task) for i in range(options.tasks)]

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(options.tasks, *shape, generator=generator) / 50

    bench.updates = {
        name: LowRank(drawn(options.rank, m.in_features), drawn(m.out_features, options.rank))
        for name, m in modules.items()
    }
    bench.net, bench.heads = net, [heads] * options.tasks
    bench.data = [Rows(options.rows, options.length, seed) for seed in range(options.tasks)]
    bench.batch_size = 64
    return bench


def problem_of(bench: Bench, folder: str, name: str, searched: bool = False) -> Problem:
    """A grid over a scaling, or layer-wise AdaMerging."""
    grid = None if searched else {"scaling": [0.3]}
    own = TIES if name == "ties" else {}
    merge = build(
        Merge,
        {
            "_target_": f"osrm_exp.merging.{name}",
            "space": "delta",
            "scaling": 1.0,
            "grid": grid,
            **own,
        },
        "merge",
    )
    own = {"family": COEFFICIENTS, "objective": ENTROPY} if searched else {}
    search = build(Search, {"_target_": "osrm_exp.search.grid", "widen": False, **own}, "search")
    cell = SimpleNamespace(
        merge=merge, search=search, tasks=bench.tasks, rank=None, seed=1,
        protocol=SimpleNamespace(select="tune"), names={"merge": name},
    )  # fmt: skip
    return Problem(cell, bench, {}, History(Path(folder)))


def timed(work: Callable[[], object]) -> float:
    """Seconds of a core."""
    start = time.process_time()
    work()
    return time.process_time() - start


def in_turn(bare: Callable, searched: dict[str, Callable], count: int) -> dict[str, Any]:
    """All `count` times, in turn: the fastest of each, and its ratio to the bare one."""
    runs = {"bare": bare, **searched}
    for run in runs.values():
        run()  # warm
    taken = [{name: timed(run) for name, run in runs.items()} for _ in range(count)]
    best = {name: min(one[name] for one in taken) for name in runs}
    pairs = {name: [one[name] / one["bare"] for one in taken] for name in searched}
    return {
        name: {"seconds": round(best[name], 3), "bare_seconds": round(best["bare"], 3),
               "ratio": round(best[name] / best["bare"], 3),
               "median_ratio": round(statistics.median(pairs[name]), 3)}
        for name in searched
    }  # fmt: skip


def candidates(bench: Bench, folders: ExitStack, count: int) -> dict[str, Any]:
    """A candidate of two merges beside bare forward passes over the same rows."""
    scalings = iter(range(10**9))

    def candidate(grid: Problem) -> Callable[[], object]:
        return lambda: grid.score({"scaling": next(scalings) / 1000})

    def bare() -> None:
        for index in range(len(bench.tasks)):
            logits(bench.net, bench.batches(index, "tune"))

    names = ("task_arithmetic", "ties")
    grids = {n: candidate(problem_of(bench, scratch(folders), n)) for n in names}
    return in_turn(bare, grids, count)


def gradients(bench: Bench, folders: ExitStack, count: int, size: int) -> dict[str, Any]:
    """A step of layer-wise AdaMerging beside a forward and a backward of one adapter."""
    learned = problem_of(bench, scratch(folders), "task_arithmetic", searched=True)
    free = {n: t.clone().requires_grad_() for n, t in learned.family.start.items()}
    batches = {i: [rows.collate(rows.tune[:size])] for i, rows in enumerate(bench.data)}
    alone = {name: stack.task(0) for name, stack in bench.updates.items()}
    leaves = {
        name: LowRank(one.A.clone().requires_grad_(), one.B.clone().requires_grad_())
        for name, one in alone.items()
    }

    def trained() -> None:
        for index, (batch,) in batches.items():
            inputs = {k: v for k, v in batch.items() if k != "labels"}
            with applied(bench.net, leaves, bench.heads[index]):
                out = bench.net(**inputs).logits
            classification.loss(out, batch["labels"]).backward()

    step = {"adamerging": lambda: learned.gradient(free, batches.__getitem__)}
    return in_turn(trained, step, count)


def scratch(folders: ExitStack) -> str:
    return folders.enter_context(tempfile.TemporaryDirectory())


def main() -> None:
    """Prints the ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a BERT's checkpoint")
    for name, default in {"tasks": 8, "rows": 64, "length": 32, "rank": 8, "batch": 16,
                          "evaluations": 12, "steps": 12, "threads": 1}.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = bench_of(*network_of(options.model), options)
    with ExitStack() as folders:
        evaluated = candidates(bench, folders, options.evaluations)
        stepped = gradients(bench, folders, options.steps, options.batch)
    said = {"options": vars(options) | {"model": Path(options.model).name},
            "torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}  # fmt: skip
    print(json.dumps({**said, "candidates": evaluated, "gradient": stepped}, indent=2))


if __name__ == "__main__":
    main()
