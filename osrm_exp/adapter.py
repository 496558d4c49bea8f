"""Adapters on disk: plain PEFT folders, read as low-rank updates and written back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from osrm_exp.lora import LowRank, stack

PREFIX = "base_model.model."
FOREIGN = {"bias": "none", "use_dora": False, "lora_bias": False, "fan_in_fan_out": False}


@dataclass(frozen=True)
class Adapter:
    """A task's update and head, as PEFT saves them."""

    updates: dict[str, LowRank]  # by module; scaling folded into B, float32
    heads: dict[str, Tensor]  # head tensors by their name in the base network


def read_adapter(folder: Path | str) -> Adapter:
    """A PEFT LoRA folder; `rank_pattern`, `alpha_pattern` and rsLoRA are honoured.

    Raises:
        ValueError: not a LoRA in safetensors, or one whose update is more than `B A`.
    """
    folder = Path(folder)
    config = _config(folder)
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise ValueError(
            f"{folder} holds no adapter_model.safetensors; pickled adapters are not read"
        )
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is not safetensors: {error}") from None
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    updates, heads = {}, {}
    for name, tensor in tensors.items():
        module, _, factor = name.rpartition(".lora_")
        if not module:
            heads[name] = tensor
        elif factor == "A.weight":
            B = tensors[f"{module}.lora_B.weight"].float()
            updates[module] = LowRank(tensor.float(), B * _scaling(config, module, len(tensor)))
        elif factor != "B.weight":
            raise ValueError(f"{folder}: {name} is not a factor of a linear LoRA")
    for module, update in updates.items():
        if not (update.A.isfinite().all() and update.B.isfinite().all()):
            raise ValueError(f"{folder}: the factors of {module} are not finite")
    return Adapter(updates, heads)


def write_adapter(
    folder: Path | str, updates: Mapping[str, LowRank], heads: Mapping[str, Tensor] = {}, **config
) -> None:
    """A plain PEFT folder whose scaling is 1 (`lora_alpha = r`), with float32 factors.

    Args:
        updates: one update a module, ranks may differ (`rank_pattern`).
        heads: head tensors to save beside the factors.
        config: further fields of `LoraConfig` (`base_model_name_or_path`, `task_type`, …).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ranks = {name: max(update.rank, 1) for name, update in updates.items()}
    top = max(ranks.values())
    other = {name: rank for name, rank in ranks.items() if rank != top}
    LoraConfig(
        r=top, lora_alpha=top, rank_pattern=other, alpha_pattern=dict(other),
        target_modules=sorted(updates), inference_mode=True, **config,
    ).save_pretrained(folder)  # fmt: skip
    tensors = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in heads.items()}
    for name, update in updates.items():
        spare = ranks[name] - update.rank  # PEFT knows no rank 0: one zero direction stands for it
        A = torch.nn.functional.pad(update.A.float(), (0, 0, 0, spare))
        B = torch.nn.functional.pad(update.B.float(), (0, spare))
        tensors[f"{PREFIX}{name}.lora_A.weight"] = A.contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = B.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def stacked(adapters: list[Mapping[str, LowRank]]) -> dict[str, LowRank]:
    """One stack a module over all tasks; an adapter without a module has rank 0 there.

    Raises:
        ValueError: no adapters, or deltas of one module that differ in shape.
    """
    if not adapters:
        raise ValueError("there is no adapter to merge")
    names = list(dict.fromkeys(name for adapter in adapters for name in adapter))
    stacks = {}
    for name in names:
        like = next(adapter[name] for adapter in adapters if name in adapter)
        none = LowRank(like.A[:0], like.B[:, :0])
        stacks[name] = stack([adapter.get(name, none) for adapter in adapters])
    return stacks


def _config(folder: Path) -> dict:
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise ValueError(f"{folder} is not a PEFT adapter: it holds no adapter_config.json")
    config = json.loads(file.read_text())
    if config.get("peft_type") != "LORA":
        raise ValueError(
            f"{folder} is a {config.get('peft_type')} adapter; only LORA can be merged"
        )
    for key, plain in FOREIGN.items():
        if config.get(key, plain) not in (plain, None):
            raise ValueError(f"{folder}: {key}={config[key]} is more than B A and cannot be merged")
    return config


def _scaling(config: dict, module: str, rank: int) -> float:
    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns, module), config["lora_alpha"])
    return alpha / sqrt(rank) if config.get("use_rslora") else alpha / rank
