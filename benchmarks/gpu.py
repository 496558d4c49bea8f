"""What one GPU of 80 GB takes for each expensive stage, beside its CPU where that is a choice.

    python benchmarks/gpu.py --out results/benchmark_gpu/h100.json
    python benchmarks/gpu.py --tiny        # everything small, on whatever device there is

Weights are random and built from configs: nothing is downloaded. Every part has its share of the
time and every measurement a limit; what was measured is written at once, what failed or took too
long says so in its record (`error`), and the next one goes on.

Floating point operations of a training step, in matrix products, with N the weights of the frozen
linear layers that a token passes, n those of LoRA, S tokens a sequence and d the width of one of
the attentions' queries:

    hardware      a token 2 N forward + 2 N backward (inputs alone get a gradient) + 6 n,
                  + 2 N where activations are recomputed,
                  attention 3 * 4 S d, half of it where it is causal
    conventional  a token 6 N + 12 S d an attention: as if all weights were trained, nothing causal
                  and nothing recomputed; what papers divide by the peak

`mfu_*` are shares of the card's dense peak in the precision of the weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from eigen import rotated, spectra
from gpu_shapes import Shape, adapters, backbone, checkpoint, fed, network
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from osrm_exp import CONF
from osrm_exp.artifacts import Workshop
from osrm_exp.artifacts.fine_tune import quiet
from osrm_exp.artifacts.statistic import BATCH
from osrm_exp.compose import cell_from, configuration
from osrm_exp.inits.eigen import smallest
from osrm_exp.lora import LowRank
from osrm_exp.merging.api import configured, merge
from osrm_exp.model import adapted_modules
from osrm_exp.pipeline import run
from osrm_exp.statistics import gram
from osrm_exp.store import Store
from osrm_exp.training.module import LoraFineTuning

SECONDS = {"cell": 70, "merging": 75, "fine_tuning": 125, "statistics": 50, "eigen": 25}
PEAK = {"bf16": 989e12, "fp32": 67e12}  # FLOP/s of an H100 or H200 (SXM), dense; fp32 without TF32
WARM, TIMED, TASKS, SAMPLES = 3, 8, 8, 100
Record = dict[str, Any]

# shape, precision, tokens, batch sizes (the first that fits), activations recomputed
STEPS = (
    ("roberta_large", "fp32", 128, (64,), False),
    ("roberta_large", "bf16", 128, (64,), False),
    ("llama3_8b", "bf16", 512, (16, 8, 4), False),
    ("llama3_8b", "bf16", 128, (64, 32, 16), False),
    ("llama3_8b", "bf16", 512, (16,), True),
    ("llama3_2_1b", "bf16", 128, (64,), False),
    ("llama3_2_1b", "bf16", 512, (16,), False),
    ("llama3_2_3b", "bf16", 128, (64, 32), False),
    ("llama3_2_3b", "bf16", 512, (16, 8), False),
    ("t5_large", "bf16", 128, (64,), False),
    ("t5_large", "fp32", 128, (64,), False),
)
# what the statistics of a merge, its heads and its search do on a device
MERGES = (
    ["task_arithmetic", "search=grid", "merge.grid={scaling: [0.3, 1.0]}"], ["ties"],
    ["regmean"], ["regmean_pp"], ["fisher"], ["mats"], ["emr"], ["lm_cocktail"], ["individual"],
)  # fmt: skip


class OutOfTimeError(Exception):
    pass


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises in the body after so many seconds; limits nest."""

    def stop(*_: Any) -> None:
        raise OutOfTimeError(f"stopped after {seconds:.0f} s")

    start, outer = time.monotonic(), signal.getitimer(signal.ITIMER_REAL)[0]
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, outer or seconds))
    try:
        yield
    finally:
        left = outer - (time.monotonic() - start)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, max(left, 0.01) if outer else 0)


def attempt(limit: float, function: Callable[..., Record], *given: Any) -> Record:
    """What a function finds, or why it found nothing."""
    try:
        with within(limit):
            return function(*given)
    except Exception as error:
        words = " ".join(str(error).split())[:400]
        return {"error": f"{type(error).__name__}: {words}"}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def seconds(device: torch.device, work: Callable[[], Any]) -> float:
    """Of one run, the device's own work included."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_gb(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None


# Fine-tuning: the production step, under Lightning, on full batches of random tokens.


class Stopwatch(pl.Callback):
    """Seconds of a step, after the first few."""

    def on_train_batch_end(self, trainer: pl.Trainer, *given: Any) -> None:
        index = given[-1]
        if index + 1 in (WARM, WARM + TIMED):
            synchronize(trainer.strategy.root_device)
            now = time.perf_counter()
            self.start, self.step = now, (now - getattr(self, "start", now)) / TIMED


class Staying(SingleDeviceStrategy):
    """Leaves the network where it is, for the next measurement."""

    def teardown(self) -> None:
        pass


def fine_tuning(device: torch.device, tiny: bool) -> Iterator[Record]:
    if device.type == "cuda":
        yield {"what": "a product of 8192 x 8192 in bf16", **attempt(10, ceiling)}
    for name, precision, length, batches, recomputed in STEPS:
        what = {"shape": name, "precision": precision, "tokens": length, "recomputed": recomputed}
        for batch in [2] if tiny else batches:
            shape = Shape(name, precision, 16 if tiny else length, batch, recomputed, tiny)
            found = attempt(30, step, shape, device)
            if "OutOfMemory" not in found.get("error", ""):
                break
        yield {**what, "batch": batch, **found}


def ceiling() -> Record:
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    times = [seconds(a.device, lambda: a @ b) for _ in range(10)]
    return {"tflops": 2 * 8192**3 / median(times[3:]) / 1e12}


def step(shape: Shape, device: torch.device) -> Record:
    net = network(shape, device)
    module = LoraFineTuning(net, shape.task, shape.tuning)
    watch, batches = Stopwatch(), [fed(shape, seed) for seed in range(WARM + TIMED)]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = pl.Trainer(
        accelerator=device.type, devices=1, strategy=Staying(device), max_epochs=1,
        gradient_clip_val=shape.tuning.clip, logger=False, callbacks=[watch],
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    tokens, peak = shape.batch * shape.length, PEAK[shape.precision]
    return {
        "steps_per_second": 1 / watch.step, "tokens_per_second": tokens / watch.step,
        "peak_gb": peak_gb(device),
        **{f"tflop_{k}": v / 1e12 for k, v in shape.operations(net).items()},
        **{f"mfu_{k}": v / watch.step / peak for k, v in shape.operations(net).items()},
    }  # fmt: skip


# Statistics: the token gram of q and v, task by task.


def statistics(device: torch.device, tiny: bool) -> Iterator[Record]:
    for name, precision in (("roberta_large", "fp32"), ("llama3_8b", "bf16")):
        shape = Shape(name, precision, 16 if tiny else 128, BATCH, False, tiny)
        net = backbone(shape, device).eval()
        modules = list(adapted_modules(net, shape.model, shape.tuning.lora.blocks))
        record = {"shape": name, "precision": precision, "samples": SAMPLES, "tasks": 0}
        for task in range(2 if tiny else TASKS):
            found = attempt(30, collect, net, modules, shape, device, task)
            record |= {"tasks": task + 1, **found}
            record["seconds"] = record.get("seconds", 0) + found.get("one_task", 0)
            yield dict(record)  # at once: the part may end before its last task
            if "error" in found:
                break
        del net


def collect(net: Any, modules: list[str], shape: Shape, device: torch.device, task: int) -> Record:
    batches = [fed(shape, 100 * task + i) for i in range(0, SAMPLES // BATCH + 1)]
    batches[-1] = {k: v[: SAMPLES % BATCH] for k, v in batches[-1].items()}
    batches = [{k: v.to(device) for k, v in batch.items()} for batch in batches]

    @torch.no_grad()
    def forward() -> None:
        for batch in batches:
            net(**{k: v for k, v in batch.items() if k != "labels"})

    bare = seconds(device, forward)
    options = {"level": "token", "include_padding": False}
    return {
        "one_task": seconds(device, lambda: gram(net, batches, modules, **options)),
        "one_bare_forward": bare, "peak_gb": peak_gb(device),
    }  # fmt: skip


# Extreme eigenpairs, what OSRM asks of a statistic, on both devices.


def eigen(device: torch.device, tiny: bool) -> Iterator[Record]:
    for width in (128,) if tiny else (1024, 4096):
        values = spectra(width, 8)["decaying"]
        matrix, _ = rotated(values)
        for where in dict.fromkeys((device.type, "cpu")):
            given = matrix.to(where)
            for name, solve in (
                ("smallest", lambda G: smallest(G, 8)),
                ("eigh", torch.linalg.eigh),
            ):
                if (name, where) != ("eigh", "cpu"):
                    what = {"width": width, "solver": name, "device": where}
                    yield {**what, **attempt(15, solved, solve, given, values)}


def solved(solve: Callable[[Tensor], tuple[Tensor, Tensor]], G: Tensor, values: Tensor) -> Record:
    solve(G)  # makes the library's handles
    times = [seconds(G.device, lambda: solve(G)) for _ in range(3)]
    A = solve(G)[1][:, :8]
    excess = (A * (G @ A)).sum().item() / values[:8].sum().item() - 1
    return {"seconds": median(times), "excess": excess}


# Merging: every method without data whose result is low rank.


def merging(device: torch.device, tiny: bool) -> Iterator[Record]:
    small = adapters(2, tiny=True)
    names = sorted(file.stem for file in (CONF / "merge").glob("*.yaml"))
    chosen = []
    for name in names:
        if configured(name).statistics:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = attempt(60 if tiny else 20, agreement, name, small, device)
        if "error" in found or found["low_rank"]:
            chosen.append(name)
            yield {"method": name, **found}
    for where in dict.fromkeys((device, torch.device("cpu"))):
        full = adapters(2 if tiny else 32, tiny, where)
        for name in chosen:
            what = {"method": name, "device": where.type}
            yield {
                **what,
                **attempt(60 if tiny else 6 if where == device else 3, merged, name, full, where),
            }


def agreement(name: str, small: list, device: torch.device) -> Record:
    """Whether a small merge gives the same update on the device as on the CPU."""
    given = small[:2] if name == "slerp" else small
    there = [{k: update.to(device) for k, update in one.items()} for one in given]
    a, b = dict(merge(name, given)), dict(merge(name, there))
    low_rank = all(isinstance(update, LowRank) for update in a.values())
    if not low_rank:
        return {"low_rank": False}
    pairs = [(a[k].delta, b[k].delta.cpu()) for k in a]
    worst = max(((x - y).norm() / x.norm().clamp(min=1e-30)).item() for x, y in pairs)
    return {"low_rank": True, "stays": all(b[k].A.device.type == device.type for k in b),
            "difference": worst}  # fmt: skip


def merged(name: str, full: list, device: torch.device) -> Record:
    given = full[:2] if name == "slerp" else full
    ranks: list[int] = []

    def work() -> None:
        result = merge(name, given)
        ranks.extend(result[module].rank for module in result)

    return {"seconds": seconds(device, work), "rank": max(ranks), "modules": len(ranks)}


# One cell end to end: what is trained and scored on the device must score as on the CPU.


def cell(device: torch.device, tiny: bool) -> Iterator[Record]:
    folder = Path(tempfile.mkdtemp())
    places = {"cpu": "cpu", device.type: "gpu" if device.type == "cuda" else "cpu"}
    try:
        checkpoint(folder / "model")
        for merge in MERGES if not tiny else MERGES[:3]:
            rows = {}
            for place, accelerator in [*places.items(), ("copied", places[device.type])]:
                rows[place] = attempt(
                    200 if tiny else 30, scored, folder, place, accelerator, merge, tiny
                )
                if place == "cpu" and not (folder / "copied").exists():
                    shutil.copytree(folder / "cpu", folder / "copied")
                    for statistic in (folder / "copied").glob("Statistic/*"):
                        shutil.rmtree(statistic)  # to be collected on the device
            yield {"merge": merge[0], **compared(rows)}
    finally:
        shutil.rmtree(folder)


def scored(folder: Path, place: str, accelerator: str, merge: list[str], tiny: bool) -> Record:
    """`{task/metric: value}` of a cell whose adapters and statistics lie in the store `place`."""
    overrides = [
        f"model.path={folder / 'model'}", "dataset=mini", "tuning.lr=3e-3", "init=osrm",
        f"tuning.epochs={1 if tiny else 2}", "tuning.batch_size=16", "tuning.lora.r=4",
        "tuning.max_length=64",
        "dataset.only=[sentiment,similarity,inference3]", "dataset.rows.train=128",
        "dataset.rows.validation=64", "protocol.holdout=0.2", f"paths.store={folder / place}",
        f"merge={merge[0]}", *merge[1:],
    ]  # fmt: skip
    workshop = Workshop(Store(folder / place), accelerator, progress=False)
    rows = run(cell_from(configuration(overrides)), workshop).rows
    return {f"{row['task']}/{row['metric']}": row["value"] for row in rows}


def compared(rows: dict[str, Record]) -> Record:
    """Largest difference from the CPU's scores, of adapters trained there and here."""
    if errors := {k: found["error"] for k, found in rows.items() if "error" in found}:
        return {"error": errors}
    apart = {
        place: max(abs(found[key] - value) for key, value in rows["cpu"].items())
        for place, found in rows.items()
    }
    return {"same_adapters": apart["copied"], "trained_here": max(apart.values())}


PARTS = {"cell": cell, "merging": merging, "fine_tuning": fine_tuning,
         "statistics": statistics, "eigen": eigen}  # fmt: skip


def about(device: torch.device) -> Record:
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu", "torch": torch.__version__,
        "threads": torch.get_num_threads(), "python": sys.version.split()[0], "peak": PEAK,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a JSON file; without, records are only printed")
    parser.add_argument("--parts", default=",".join(PARTS), help="a,b")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    found: dict[str, Any] = {"about": about(device)}
    for name in given.parts.split(","):
        found[name] = []
        start = time.perf_counter()
        try:
            with within(SECONDS[name] * (10 if given.tiny else 1)), quiet():
                for record in PARTS[name](device, given.tiny):
                    keep(found, name, record, given.out)
        except Exception as error:
            keep(found, name, {"error": f"{type(error).__name__}: {error}"}, given.out)
        keep(found, name, {"part_seconds": time.perf_counter() - start}, given.out)


def keep(found: dict[str, Any], part: str, record: Record, out: Path | None) -> None:
    """Adds a record and writes everything that there is so far."""
    short = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in record.items()}
    found[part].append(short)
    print(part, json.dumps(short), flush=True)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
