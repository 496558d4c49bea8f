"""Merged updates as files that others load, from Python: a PEFT adapter or a whole checkpoint.

merged = merge("ties", ["adapters/mnli", "adapters/rte"], density=0.2)
save(merged, "merged", base="FacebookAI/roberta-large")
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from osrm_exp.adapter import located, write_adapter
from osrm_exp.hub import first_line
from osrm_exp.lora import LowRank, Result, Update

TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
             "*.model", "chat_template*")  # fmt: skip


def save(
    merged: Mapping[str, Update],
    out: Path | str,
    *,
    base: Path | str | PreTrainedModel | None = None,
    rank: int | None = None,
    **config: Any,
) -> Path:
    """Writes a merge to `out`, whole or not at all: an adapter, or with `base` a checkpoint.

    Args:
        merged: what `merge` returned.
        out: a folder that does not exist yet.
        base: what the adapters were trained on, a folder, a hub id (`org/name[@revision]`) or a
            loaded model; its weights keep their dtype, and a loaded model stays as it is.
        rank: truncates every module; a dense result needs it to become an adapter.
        config: further fields of an adapter's `LoraConfig` (`base_model_name_or_path`, …).

    Raises:
        ValueError: a result that does not fit the form asked for or the base, or `out` exists.
    """
    result = Result(merged, rank)
    if base is not None and config:
        raise ValueError(f"{next(iter(config))} is a field of an adapter; a checkpoint has none")
    with whole(out) as folder:
        if base is None:
            write_adapter(folder, low_rank(result), **config)
        else:
            source = base if isinstance(base, nn.Module) else located(base, CHECKPOINT)
            net = loaded(source)
            fold(net, result)
            net.save_pretrained(folder)
            if isinstance(source, Path):
                _copy_tokenizer(source, folder)
    return Path(out)


CHECKPOINT = ("*.json", "*.safetensors", *TOKENIZER)


@contextmanager
def whole(out: Path | str) -> Iterator[Path]:
    """A scratch folder that becomes `out` at the end; after an error neither is there."""
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out} exists already: name a folder that does not")
    scratch = out.with_name(f".{out.name}.scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def low_rank(result: Result) -> dict[str, LowRank]:
    """Balanced factors of every module.

    Raises:
        ValueError: a module that is dense, or that tasks do not share.
    """
    factors = {}
    for module, update in result:
        single = update.single
        if single.rank is None:
            raise ValueError(
                f"{module} is dense, which no LoRA holds exactly: truncate the merge with rank=K "
                "(--rank K), or write a checkpoint with base=MODEL (--base MODEL; --merged of "
                "osrm_exp.export)"
            )
        factors[module] = single.balanced()
    return factors


def loaded(source: Path | nn.Module) -> PreTrainedModel:
    """A copy of a loaded model, or a folder's checkpoint in the class and dtype that it names.

    Raises:
        ValueError: a model with adapters, or a folder that does not hold the whole of a model.
    """
    if isinstance(source, nn.Module):
        if hasattr(source, "peft_config") or not isinstance(source, PreTrainedModel):
            raise ValueError(
                f"base is a {type(source).__name__}: give the plain transformers model, without "
                "adapters (PEFT's unload() gives it back)"
            )
        return deepcopy(source)
    if (source / "adapter_config.json").exists():
        raise ValueError(f"{source} is an adapter: give the base model that it was trained on")
    try:
        config = AutoConfig.from_pretrained(source)
        kind = getattr(transformers, (config.architectures or ["AutoModel"])[0], AutoModel)
        net, found = kind.from_pretrained(source, dtype="auto", output_loading_info=True)
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{source} is not a checkpoint folder: {first_line(error)}") from None
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"{source} does not hold {missing[0]}, which would be drawn anew: load the model "
            "yourself and give it as base"
        )
    return net


@torch.no_grad()
def fold(net: PreTrainedModel, result: Result) -> None:
    """Adds a merge to a model's weights, each rounded once to its dtype.

    Raises:
        ValueError: a module that the model does not have, or that is not linear or of that shape.
    """
    tied = [id(p) for _, p in net.named_parameters(remove_duplicate=False)]
    for name, update in result:
        module = _module(net, name)
        weight = module.weight
        if tied.count(id(weight)) > 1:
            raise ValueError(
                f"the weight of {name} is tied to another module's, which the merge would change "
                "too: untie them (tie_word_embeddings=False) and give the loaded model as base"
            )
        weight.copy_(_sum(weight, update.single.delta, isinstance(module, Conv1D), name))


def _sum(weight: Tensor, delta: Tensor, transposed: bool, name: str) -> Tensor:
    delta = delta.mT if transposed else delta  # a Conv1D stores [in, out]
    if delta.shape != weight.shape:
        raise ValueError(
            f"{name} is {list(weight.shape)} in the base and {list(delta.shape)} in the merge: "
            "give the model that the adapters were trained on"
        )
    return weight.to(torch.promote_types(weight.dtype, torch.float32)) + delta.to(weight.device)


def _module(net: PreTrainedModel, name: str) -> nn.Linear | Conv1D:
    """The module that adapters call `name`; a headless model lacks its prefix, or has it more."""
    prefix, modules = net.base_model_prefix, dict(net.named_modules())
    for known in (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"):
        module = modules.get(known)
        if isinstance(module, (nn.Linear, Conv1D)) and module.weight.is_floating_point():
            return module
    raise ValueError(
        f"{type(net).__name__} has no linear module {name} in floating point: give the model that "
        "the adapters were trained on, not quantized"
    )


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for file in {file for pattern in TOKENIZER for file in source.glob(pattern)}:
        if file.is_file():
            shutil.copy(file, folder / file.name)
