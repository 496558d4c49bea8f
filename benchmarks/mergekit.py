"""Adapter folders to a merged checkpoint: `osrm-exp merge --base` beside `mergekit-yaml`.

    python benchmarks/mergekit.py --mergekit ENV/bin/mergekit-yaml [--threads 2] [--repeats 3]

One layer of Llama-3-8B's shape (q, k, v, o in float32) and eight adapters of ranks 8 to 16. Both
are commands in processes of their own, by turns; seconds are the least of the repeats (`cpu`: of
the processor, which other work changes less), memory is the largest resident set, mapped files
included. mergekit folds every adapter into a copy of the base first; `folded` is its time where the
copies are there already, and no bar. `apart` is the relative distance of the two results' deltas:
where entries are dropped at random it stands beside the distance of two seeds of our own, and
`norm` is our result's norm beside theirs.

mergekit (0.1.5, LGPL, with pins of its own) wants an environment of its own.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from osrm_exp.adapter import write_adapter
from osrm_exp.lora import LowRank

RANKS = (8, 16, 12, 16, 8, 16, 12, 16)
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj")
OUT = Path(__file__).parents[1] / "results" / "benchmark_mergekit" / "table.md"
HEAD = "method s its_s ratio bar cpu its_cpu ratio folded MB its_MB ratio bar apart own_seeds norm"
# between this process and the command: a child's peak starts from the memory that it was forked in
LAUNCHER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([seconds, used.ru_maxrss / 1024, used.ru_utime + used.ru_stime]))
"""
LESS = 6  # times less memory, the bar


class Setting(NamedTuple):
    """One method as both spell it, and how many times faster it is to be."""

    ours: tuple[str, ...]
    theirs: dict[str, float | bool]
    bar: int


SETTINGS = {
    "task_arithmetic": Setting(("task_arithmetic", "scaling=1"), {"normalize": False}, 3),
    "ties": Setting(
        ("ties_mergekit", "density=0.2"), {"density": 0.2, "normalize": True, "rescale": False}, 10
    ),
    "dare_ties": Setting(
        ("dare_ties", "density=0.5", "trim_density=1", "granularity=tensor"),
        {"density": 0.5, "normalize": True, "rescale": True}, 3,
    ),
    "della": Setting(
        ("della_mergekit", "density=0.5", "epsilon=0.15"),
        {"density": 0.5, "epsilon": 0.15, "normalize": True, "rescale": True}, 3,
    ),
}  # fmt: skip


class Place(NamedTuple):
    """What both read, and where they write."""

    folder: Path
    base: Path
    adapters: list[Path]


def prepared(folder: Path, width: int) -> Place:
    """A base model and random adapters on disk."""
    config = LlamaConfig(
        hidden_size=width, num_hidden_layers=1, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=64, vocab_size=128, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    net, base = LlamaForCausalLM(config), folder / "base"
    net.save_pretrained(base)
    shapes = {n: m.weight.shape for n, m in net.named_modules() if n.endswith(ADAPTED)}
    adapters = [folder / f"task{task}" for task in range(len(RANKS))]
    for adapter, rank in zip(adapters, RANKS):
        updates = {
            name: LowRank(torch.randn(rank, n) / n**0.5, torch.randn(m, rank) / 10)
            for name, (m, n) in shapes.items()
        }
        write_adapter(adapter, updates, base_model_name_or_path=str(base), task_type="CAUSAL_LM")
    return Place(folder, base, adapters)


def ours(place: Place, setting: Setting, out: Path, *more: str) -> list[str]:
    """The command that merges with this package."""
    method, *options = setting.ours
    paths = [*map(str, place.adapters), str(out), *options, *more, "--base", str(place.base)]
    return [sys.executable, "-m", "osrm_exp.merging", method, *paths]


def theirs(place: Place, mergekit: Path, name: str, out: Path, threads: int) -> list[str]:
    """The command that merges with mergekit."""
    shared = {k: v for k, v in SETTINGS[name].theirs.items() if k in ("normalize", "rescale")}
    each = {k: v for k, v in SETTINGS[name].theirs.items() if k not in shared}
    config = {
        "merge_method": name, "base_model": str(place.base), "dtype": "float32",
        "parameters": shared,
        "models": [
            {"model": f"{place.base}+{adapter}", "parameters": {"weight": 1.0, **each}}
            for adapter in place.adapters
        ],
    }  # fmt: skip
    file = place.folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return [
        str(mergekit), str(file), str(out), "--lora-merge-cache", str(place.folder / "folded"),
        "--num-threads", str(threads), "--random-seed", "0", "--no-copy-tokenizer", "--quiet",
    ]  # fmt: skip


def run(command: list[str], threads: int) -> tuple[float, float, float]:
    """Seconds, MB of the largest resident set, and seconds of the processor of a command."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    launched = [sys.executable, "-S", "-c", LAUNCHER, *command]
    done = subprocess.run(launched, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    seconds, peak, cpu = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak, cpu


def deltas(base: Path, merged: Path) -> Tensor:
    """What a checkpoint adds to the base, all adapted modules in one vector."""
    before, after = (load_file(folder / "model.safetensors") for folder in (base, merged))
    names = sorted(n for n in before if n.removesuffix(".weight").endswith(ADAPTED))
    return torch.cat([(after[n].float() - before[n].float()).flatten() for n in names])


def distance(a: Tensor, b: Tensor) -> str:
    return f"{((a - b).norm() / b.norm()).item():.1e}"


def compared(place: Place, name: str, one: Path, other: Path, threads: int) -> list[str]:
    """The cells that tell whether the results are the same."""
    mine, its = deltas(place.base, one), deltas(place.base, other)
    norm, seeds = f"{(mine.norm() / its.norm()).item():.3f}", "-"
    if name in ("dare_ties", "della"):
        again = place.folder / "again"
        run(ours(place, SETTINGS[name], again, "seed=1"), threads)
        seeds = distance(deltas(place.base, again), mine)
        shutil.rmtree(again)
    return [distance(mine, its), seeds, norm]


def measured(place: Place, mergekit: Path, name: str, threads: int, repeats: int) -> list[str]:
    """A row of the table."""
    setting, one, other = SETTINGS[name], place.folder / "ours", place.folder / "theirs"
    found: dict[str, list[tuple[float, float, float]]] = {"ours": [], "theirs": [], "folded": []}
    for _ in range(repeats):
        shutil.rmtree(one, ignore_errors=True)
        found["ours"].append(run(ours(place, setting, one), threads))
        shutil.rmtree(place.folder / "folded", ignore_errors=True)
        for kind in ("theirs", "folded"):
            shutil.rmtree(other, ignore_errors=True)
            found[kind].append(run(theirs(place, mergekit, name, other, threads), threads))
    seconds, memory, cpu = ({k: min(x[i] for x in v) for k, v in found.items()} for i in range(3))
    faster, less = seconds["theirs"] / seconds["ours"], memory["theirs"] / memory["ours"]
    cells = [name, f"{seconds['ours']:.1f}", f"{seconds['theirs']:.1f}", f"{faster:.1f}"]
    cells += [verdict(faster, setting.bar), f"{cpu['ours']:.1f}", f"{cpu['theirs']:.1f}"]
    cells += [f"{cpu['theirs'] / cpu['ours']:.1f}", f"{seconds['folded']:.1f}"]
    cells += [f"{memory['ours']:.0f}", f"{memory['theirs']:.0f}", f"{less:.1f}"]
    cells += [verdict(less, LESS)]
    return cells + compared(place, name, one, other, threads)


def verdict(ratio: float, bar: float) -> str:
    return f"{bar}x: {'pass' if ratio >= bar else 'FAIL'}"


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit", type=Path, required=True, help="its mergekit-yaml")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", default=",".join(SETTINGS))
    parser.add_argument("--width", type=int, default=4096, help="smaller ones write no file")
    given = parser.parse_args()
    shown = "python benchmarks/mergekit.py --mergekit ENV/bin/mergekit-yaml "
    shown += f"--threads {given.threads} --repeats {given.repeats}"
    machine = f"{os.cpu_count()} CPU cores, torch {torch.__version__}"
    note = __doc__.split("\n\n")[2]
    lines = ["# Folders to a checkpoint, beside mergekit", "", f"`{shown}`: {machine}.", "", note]
    lines += ["", row(HEAD.split()), "|" + "---|" * len(HEAD.split())]
    with tempfile.TemporaryDirectory() as folder:
        place = prepared(Path(folder), given.width)
        for name in given.methods.split(","):
            lines.append(row(measured(place, given.mergekit, name, given.threads, given.repeats)))
            print(lines[-1], flush=True)
    if given.width == 4096 and given.methods == ",".join(SETTINGS):
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
