"""Backbones by role: checkpoint, tokenizer, adapted modules, heads. No branch by architecture."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import PurePosixPath

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from osrm_exp.checkpoint import (
    attention,
    check_architecture,
    positions,
    read,
    renew,
    set_dropout,
    told_once,
)
from osrm_exp.spec import Model

logging.set_verbosity_error()  # a new head is expected here, not news
logging.disable_progress_bar()

SEQUENCES = "AutoModelForSequenceClassification"  # of all kinds that have heads


@lru_cache(maxsize=8)
def load_tokenizer(model: Model, truncation_side: str = "right") -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, padding on the right; a missing pad token becomes eos."""
    tokenizer = read(AutoTokenizer, model, truncation_side=truncation_side, padding_side="right")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_backbone(
    model: Model, outputs: int, *, precision: str, dropout: float | None = None,
    auto: str = SEQUENCES,
) -> PreTrainedModel:  # fmt: skip
    """The pretrained checkpoint with a new head of `outputs` logits, drawn from torch's seed, or
    without one where the model has none.

    Base weights in `precision`, heads in float32, whatever they are fed. `dropout` replaces every
    dropout rate of the checkpoint; None keeps them. `auto` is a kind's class.

    Raises:
        ValueError: a checkpoint that cannot be had, or that lacks more than a head.
    """
    config = _config(model, outputs, auto, dropout)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    net, found = read(
        getattr(transformers, auto), model, config=config, dtype=dtype,
        ignore_mismatched_sizes=True, output_loading_info=True,
        attn_implementation=attention(model, config, auto),
    )  # fmt: skip
    drawn = found["missing_keys"] | {key[0] for key in found["mismatched_keys"]}
    heads = heads_of(net, model)
    renew(net, heads, drawn, model.path)
    for head in heads.values():
        in_float32(head)
    for module in net.modules():
        if dropout is not None and isinstance(module, nn.Dropout):
            module.p = dropout
    return net


def skeleton(model: Model, outputs: int, *, auto: str = SEQUENCES) -> PreTrainedModel:
    """The architecture alone, on the meta device: shapes for checks, at no cost."""
    with torch.device("meta"):
        return getattr(transformers, auto).from_config(_config(model, outputs, auto))


def check_fit(net: PreTrainedModel, model: Model, max_length: int) -> None:
    """Whether every position and the padding of a batch have a place in the network.

    Raises:
        ValueError: `max_length` beyond the positions, a pad token outside the embedding.
    """
    room = positions(net)
    if room is not None and max_length > room:
        raise ValueError(
            f"tuning.max_length={max_length} is beyond the {room} positions of {model.name}: "
            f"choose at most {room}"
        )
    pad, words = load_tokenizer(model).pad_token_id, net.get_input_embeddings().num_embeddings
    if pad is None or pad >= words:
        raise ValueError(
            f"the tokenizer of {model.path} pads with token {pad}, outside the {words} rows of its "
            "embedding: name a pad token that it has in tokenizer_config.json"
        )


def adapted_modules(
    net: nn.Module, model: Model, blocks: Iterable[str], rank: int = 1
) -> dict[str, nn.Module]:
    """The linear modules that LoRA adapts, by name, in the order of the network.

    Raises:
        ValueError: a block that names no module or one that is not linear, or a rank above a
            module's width.
    """
    named, chosen = dict(net.named_modules()), set()
    for block in blocks:
        fitting = {name for name in named if _ends(name, model.blocks[block])}
        if not fitting:
            raise ValueError(
                f"{model.name} has no module .{model.blocks[block]} (model.blocks.{block})"
            )
        chosen |= fitting
    found = {name: module for name, module in named.items() if name in chosen}
    _check_linear(found, rank)
    places = Counter(re.sub(r"\b\d+\b", "*", name) for name in found)
    adapted = ", ".join(f"{count} {place}" for place, count in places.items())
    told_once(f"{model.name}, blocks {' '.join(blocks)}: adapts {adapted}")
    return found


def _check_linear(found: Mapping[str, nn.Module], rank: int) -> None:
    for name, module in found.items():
        if not isinstance(module, (nn.Linear, Conv1D)):
            raise ValueError(f"{name} is no linear module: LoRA cannot adapt it (model.blocks)")
        if rank > min(module.weight.shape):
            raise ValueError(
                f"tuning.lora.r={rank} is above the width of {name}, "
                f"{' x '.join(map(str, module.weight.shape))}: choose at most "
                f"{min(module.weight.shape)}"
            )


def transposed(modules: Mapping[str, nn.Module]) -> bool:
    """Whether weights are stored `[in, out]` (GPT-2's `Conv1D`): PEFT's `fan_in_fan_out`.

    Raises:
        ValueError: some are and some are not, which one adapter cannot hold.
    """
    kinds = {isinstance(module, Conv1D) for module in modules.values()}
    if len(kinds) == 2:
        raise ValueError("Conv1D and linear modules cannot share an adapter: adapt one kind")
    return kinds == {True}


def _ends(name: str, pattern: str) -> bool:
    """Whether a module's last parts are the pattern's; `*` stands for one part."""
    return PurePosixPath(name.replace(".", "/")).match(pattern.replace(".", "/"))


def heads_of(net: nn.Module, model: Model) -> dict[str, nn.Module]:
    """The head modules by their path in the network."""
    paths = [_path(net, name) for name in model.heads]
    return {path: net.get_submodule(path) for path in paths}


def new_heads(model: Model, outputs: int, state: Mapping[str, Tensor]) -> dict:
    """Head modules that hold a task's trained tensors, keyed by path.

    Raises:
        ValueError: the tensors do not fit the head.
    """
    heads = heads_of(skeleton(model, outputs), model) if model.heads else {}
    for path, head in heads.items():
        head.to_empty(device="cpu").float()
        own = {k[len(path) + 1 :]: v for k, v in state.items() if k.startswith(f"{path}.")}
        try:
            head.load_state_dict(own)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"the head {path} of the adapter does not fit: {reason}") from None
        in_float32(head).eval()
    return heads


def in_float32(head: nn.Module) -> nn.Module:
    """The module in float32, casting what it is fed: a bf16 backbone keeps an exact head."""

    def cast(_: nn.Module, args: tuple) -> tuple:
        return tuple(a.float() if torch.is_tensor(a) and a.is_floating_point() else a for a in args)

    head.float().register_forward_pre_hook(cast)
    return head


def _config(
    model: Model, outputs: int, auto: str, dropout: float | None = None
) -> PreTrainedConfig:
    config = read(AutoConfig, model)
    check_architecture(model, config, auto)
    if auto == SEQUENCES:
        config.num_labels = outputs
    if config.pad_token_id is None:
        config.pad_token_id = load_tokenizer(model).pad_token_id
    if dropout is not None:
        set_dropout(config, dropout)
    return config


def _path(net: nn.Module, head: str) -> str:
    """Full path of a head module that a model config names by its last part."""
    for name, _ in net.named_modules():
        if name == head or name.endswith(f".{head}"):
            return name
    raise ValueError(f"model.heads names {head!r}; the network has no such module")
