"""Merging inside a live PEFT model: the counterpart of its `add_weighted_adapter`, by any method.

model.load_adapter("adapters/rte", "rte")
add_merged_adapter(model, ["mnli", "rte"], "both", "knots_ties", scaling=0.6, rank=16)
model.set_adapter("both")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from osrm_exp.adapter import lora_config, padded
from osrm_exp.adapter_config import checked
from osrm_exp.export.save import low_rank
from osrm_exp.lora import LowRank, Result
from osrm_exp.merging.api import merge


def add_merged_adapter(
    model: PeftModel,
    adapters: Sequence[str],
    adapter_name: str,
    method: str,
    *,
    rank: int | None = None,
    **options: Any,
) -> None:
    """Merges loaded adapters into a new one, frozen and not active; whole or not at all.

    Heads (`modules_to_save`) belong to their tasks: the new adapter has none.

    Args:
        model: with all these adapters loaded.
        adapters: names of adapters of the model.
        adapter_name: of the new one.
        method: as in `merge`, which also explains `options`.
        rank: truncates every module; a dense result needs it.
        **options: of the method.

    Raises:
        ValueError: an unknown adapter, a name that is taken or none, and whatever `merge` refuses.
    """
    _check_names(model, adapters, adapter_name)
    merged = merge(method, [updates_of(model, name) for name in adapters], **options)
    factors = low_rank(Result(merged, rank))
    first = model.peft_config[adapters[0]]
    trained = {p for p in model.parameters() if p.requires_grad}
    kept = ("task_type", "base_model_name_or_path", "revision", "fan_in_fan_out")
    model.add_adapter(
        adapter_name, lora_config(factors, **{field: getattr(first, field) for field in kept})
    )
    for name, update in factors.items():
        for side, factor in zip(("lora_A", "lora_B"), padded(update)):
            key = f"{name}.{side}.{adapter_name}.weight"
            model.get_base_model().get_parameter(key).data.copy_(factor)
    for p in model.parameters():  # up to 0.19, PEFT freezes the active adapter too
        p.requires_grad_(p in trained)


def _check_names(model: PeftModel, adapters: Sequence[str], adapter_name: str) -> None:
    if not isinstance(model, PeftModel):
        raise ValueError(
            f"the model is a {type(model).__name__}, no PeftModel with LoRA adapters alone: "
            "PeftModel.from_pretrained or get_peft_model gives one"
        )
    if isinstance(adapters, str):
        raise ValueError(f"adapters is one name, {adapters!r}: give a list of names")
    if not isinstance(adapter_name, str) or adapter_name == "" or "." in adapter_name:
        raise ValueError(f"{adapter_name!r} names no adapter: give a text without a dot")
    if adapter_name in model.peft_config:
        raise ValueError(f"the model has an adapter {adapter_name!r} already: name the new one")


def updates_of(model: PeftModel, adapter_name: str) -> dict[str, LowRank]:
    """The updates of a loaded adapter, by module of the base model, scaling folded in.

    Raises:
        ValueError: no such adapter, or one that is not known to be `B A` alone.
    """
    if adapter_name not in model.peft_config:
        known = ", ".join(model.peft_config)
        raise ValueError(f"the model has no adapter {adapter_name!r}; it has: {known}")
    checked(asdict(model.peft_config[adapter_name]), f"the adapter {adapter_name}")
    updates = {}
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer) and adapter_name in layer.scaling:
            factors = _factors(layer, adapter_name)
            if [factor.dim() for factor in factors] != [2, 2]:
                raise ValueError(
                    f"the adapter {adapter_name} adapts {name}, which is not linear: only linear "
                    "modules can be merged"
                )
            A, B = factors
            updates[name] = LowRank(A.float(), B.float() * layer.scaling[adapter_name])
    return updates


def _factors(layer: LoraLayer, adapter_name: str) -> list[Tensor]:
    """`A` and `B` as they stand; an embedding keeps its own elsewhere and has none."""
    sides = [s[adapter_name] for s in (layer.lora_A, layer.lora_B) if adapter_name in s]
    return [side.get_parameter("weight").detach() for side in sides]
