"""A merge added to the weights of a network, which may come from a checkpoint's folder."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from osrm_exp.export.shards import check_finite, check_fits
from osrm_exp.hub import first_line
from osrm_exp.lora import Result


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
        if any(parameter.is_meta for parameter in source.parameters()):
            raise ValueError(f"base is a {type(source).__name__} without weights: load them")
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
        ValueError: a module that the model does not have, or that is not linear, of that shape or
            finite.
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
        check_finite(name, weight)


def _sum(weight: Tensor, delta: Tensor, transposed: bool, name: str) -> Tensor:
    delta = delta.mT if transposed else delta  # a Conv1D stores [in, out]
    check_fits(name, weight, delta)
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
