"""A statistic of one task, collected in one pass and read module by module."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from osrm_exp.adapter import read_adapter
from osrm_exp.artifacts.workshop import Workshop
from osrm_exp.identity import check_unchanged
from osrm_exp.lazy import Lazy
from osrm_exp.model import adapted_modules, load_backbone, new_heads
from osrm_exp.placing import applied
from osrm_exp.spec import Statistic
from osrm_exp.tasks import data

BATCH = 16  # rows of a pass; part of what `mode=mergelm` computes


def build(spec: Statistic, folder: Path, workshop: Workshop) -> None:
    """Collects in one pass; modules that share a tensor share it on disk.

    Raises:
        ValueError: what was found is not finite.
    """
    rows = data.load(spec.task, spec.model, spec.max_length, spec.truncation_side)
    released = spec.call.options.get("include_padding")  # pads as far as the release does
    batches = rows.batches("train", BATCH, spec.samples, spec.max_length if released else None)
    torch.manual_seed(0)  # the head of the base model is new; no gram sees it
    net = load_backbone(
        spec.model, spec.task.outputs, precision=spec.precision, auto=spec.task.kind.auto
    )
    net = net.eval().to(workshop.device)
    batches = [{k: v.to(net.device) for k, v in batch.items()} for batch in batches]
    modules = list(adapted_modules(net, spec.model, spec.blocks))
    with ExitStack() as contexts:
        if spec.expert:
            adapter = read_adapter(workshop.store.folder(spec.expert))
            heads = new_heads(spec.model, spec.task.outputs, adapter.heads)
            contexts.enter_context(applied(net, adapter.updates, heads))
        found = spec.call(net, tqdm(batches, desc=spec.label, leave=False, delay=1), modules)
    for name, tensor in found.items():
        if not tensor.isfinite().all():
            raise ValueError(f"the {spec.label} of {name} is not finite")
    _write(found, folder)
    check_unchanged(spec.model, spec.task)


def _write(found: dict[str, Tensor], folder: Path) -> None:
    owner = {name: next(o for o in found if found[o] is found[name]) for name in found}
    tensors = {name: found[name].cpu().contiguous() for name in set(owner.values())}
    save_file(tensors, folder / "statistic.safetensors")
    (folder / "shared.json").write_text(json.dumps(owner, indent=2))


def owners(folder: Path) -> dict[str, str]:
    """The first module that has the very same statistic, by module: q, k and v share theirs."""
    return json.loads((folder / "shared.json").read_text())


def read_statistic(folder: Path) -> Lazy[Tensor]:
    """A statistic by module, read from disk tensor by tensor as it is asked for."""
    owner = owners(folder)

    def tensor(module: str) -> Tensor:
        with safe_open(folder / "statistic.safetensors", framework="pt") as tensors:
            return tensors.get_tensor(owner[module])

    return Lazy(owner, tensor)


def read_stacked(folders: list[Path]) -> Lazy[Tensor]:
    """The statistics of several tasks by module, `[task, …]`, read as they are asked for."""
    tasks = [read_statistic(folder) for folder in folders]
    return Lazy(tasks[0], lambda module: torch.stack([task[module] for task in tasks]))
