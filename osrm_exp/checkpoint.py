"""A checkpoint as it is found: read from a folder or the hub, and what its config leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from logging import getLogger
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from osrm_exp.hub import fetched, first_line
from osrm_exp.spec import Model

log = getLogger("osrm_exp")


def read(auto: Any, model: Model, **options: Any) -> Any:
    """What an auto class of transformers makes of a model's checkpoint, whose own code is not run.

    Raises:
        ValueError: it is not on the hub, or the folder is no checkpoint.
    """
    folder, options = Path(model.path).expanduser(), {**options, "trust_remote_code": False}

    def load() -> Any:
        if folder.is_dir():
            return auto.from_pretrained(str(folder), **options)
        return auto.from_pretrained(model.path, revision=model.revision, **options)

    if not folder.is_dir():
        return fetched(
            f"{model.path}@{model.revision}" if model.revision else model.path, load,
            "give a local checkpoint with model.path=DIR and local rows with dataset.path=DIR",
        )  # fmt: skip
    try:
        return load()
    except (OSError, ValueError) as error:
        raise ValueError(f"{model.path} is not a checkpoint folder: {first_line(error)}") from None


def renew(
    net: PreTrainedModel, heads: Mapping[str, nn.Module], drawn: set[str], where: str
) -> None:
    """Makes heads new, but for what belongs to the backbone, as a BERT's pooler does.

    Args:
        net: whose way of drawing weights is used.
        heads: by their path in the network.
        drawn: keys of the tensors that the checkpoint lacks.
        where: its path, for the error.

    Raises:
        ValueError: such a tensor is no part of a head.
    """
    for key in sorted(drawn):
        if not key.startswith(tuple(f"{path}." for path in heads)):
            raise ValueError(f"{where} does not hold {key}, which is no part of a new head")
    for path, head in heads.items():
        if not path.startswith(f"{net.base_model_prefix}."):
            _draw_again(net, head, {key.removeprefix(f"{path}.") for key in drawn})


def _draw_again(net: PreTrainedModel, head: nn.Module, drawn: set[str]) -> None:
    """Makes a head new that another task's checkpoint brought along, in whole or in part."""
    if head.state_dict().keys() <= drawn:
        return
    for module in head.modules():
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = False  # type: ignore[attr-defined]
        net._init_weights(module)


def check_architecture(model: Model, config: PreTrainedConfig, auto: str) -> None:
    """Whether a kind's class knows the architecture and, where it writes, sees no future.

    Raises:
        ValueError: it does not, or it is an encoder, which attends to what it should predict.
    """
    known = getattr(transformers, auto)._model_mapping
    encoder = type(config) in transformers.AutoModelForMaskedLM._model_mapping
    causal = auto == "AutoModelForCausalLM"
    if type(config) not in known or (causal and encoder and not config.is_decoder):
        raise ValueError(
            f"{model.name} is a {type(config).__name__.removesuffix('Config')}, which is no "
            f"{'causal language model' if causal else 'classifier'} in transformers: choose "
            "another model, or a suite of another kind"
        )


def attention(model: Model, config: PreTrainedConfig, auto: str) -> str:
    """The attention asked for, or eager where the architecture has no other."""
    architecture = getattr(transformers, auto)._model_mapping[type(config)]
    if model.attention == "sdpa" and not architecture._supports_sdpa:
        told_once(
            f"{architecture.__name__} has no sdpa attention: it runs with model.attention=eager"
        )
        return "eager"
    return model.attention


def set_dropout(config: PreTrainedConfig, dropout: float) -> None:
    """Replaces every dropout rate of a config."""
    for key in dropout_rates(config):
        setattr(config, key, dropout)


def dropout_rates(config: PreTrainedConfig) -> dict[str, float]:
    """The dropout rates of a config by key; one that is null stands for another."""
    numbers = {
        key: value for key, value in config.to_dict().items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }  # fmt: skip
    return {k: v for k, v in numbers.items() if "dropout" in k or k.endswith("pdrop")}


def positions(net: PreTrainedModel) -> int | None:
    """How long an input may be: None where positions are relative, as far as the config says."""
    tables = [
        module for name, module in net.named_modules()
        if isinstance(module, nn.Embedding) and ("position" in name or name.endswith(".wpe"))
    ]  # fmt: skip
    rotary = getattr(net.config, "rope_parameters", None) is not None
    if not (tables or rotary):
        return None
    # a RoBERTa counts from behind its pad token
    room = [t.num_embeddings - (-1 if t.padding_idx is None else t.padding_idx) - 1 for t in tables]
    return min([*room, net.config.max_position_embeddings])


@lru_cache
def told_once(sentence: str) -> None:
    """Logs what every cell of a sweep would say again."""
    log.info(sentence)
