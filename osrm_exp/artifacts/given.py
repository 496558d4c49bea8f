"""An adapter from elsewhere, in the place of a fine-tuning: read, checked and kept as ours are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from osrm_exp.adapter import Adapter, read_expert, write_adapter
from osrm_exp.identity import adapter_identity
from osrm_exp.model import new_heads, skeleton
from osrm_exp.spec import Given


def build(spec: Given, folder: Path, _: Any) -> None:
    """Copies it into the store, head included."""
    adapter = read_given(spec)
    write_adapter(
        folder, adapter.updates, adapter.heads, task_type=spec.task.kind.task_type,
        modules_to_save=list(spec.model.heads) or None, base_model_name_or_path=spec.model.name,
    )  # fmt: skip


def read_given(spec: Given) -> Adapter:
    """The adapter, known to fit its task and a network that is never loaded for it.

    Raises:
        ValueError: no plain LoRA, one for another network or another task, or one that has changed
            since the cell was composed.
    """
    adapter = read_expert(spec.source, spec.model.heads, spec.task.outputs)
    if adapter_identity(spec.source, spec.option) != spec.content:
        raise ValueError(f"{spec.option}={spec.source} was changed meanwhile: run it again")
    _check_fit(adapter, spec)
    return adapter


def _check_fit(adapter: Adapter, spec: Given) -> None:
    """Whether every module of the adapter is one of the network, and the head is the task's."""
    where = f"{spec.option}={spec.source}"
    net = skeleton(spec.model, spec.task.outputs, auto=spec.task.kind.auto)
    modules = dict(net.named_modules())
    for name, update in adapter.updates.items():
        module = modules.get(name)
        if module is None:
            raise ValueError(f"{where} adapts {name}, which {spec.model.name} does not have")
        wide = update.B.shape[0], update.A.shape[1]
        weight = getattr(module, "weight", None)
        shape = () if weight is None else tuple(weight.shape)
        if wide not in ((shape,) if isinstance(module, nn.Linear) else (shape, shape[::-1])):
            raise ValueError(f"{where} has {name} of {wide}, {spec.model.name} of {shape}")
    try:
        new_heads(spec.model, spec.task.outputs, adapter.heads)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
