"""Adapters on disk: plain PEFT folders, read as low-rank updates and written back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from osrm_exp.adapter_config import HEAD, LoraFields, read_fields
from osrm_exp.hub import first_line, located
from osrm_exp.lora import LowRank, stack
from osrm_exp.related import check_related

PREFIX = "base_model.model."
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.(?!weight\.)[^.]+)?\.weight")
ABOUT = (  # fields of a config that say where an update belongs, not what it is
    "task_type", "base_model_name_or_path", "revision", "auto_mapping", "fan_in_fan_out",
    "modules_to_save",
)  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Adapter:
    """A task's update and head, as PEFT saves them."""

    updates: dict[str, LowRank]  # by module; scaling folded into B, float32
    heads: dict[str, Tensor]  # head tensors by their name in the base network
    base: str | None = None  # the base model that its config names


def read_adapter(source: Path | str) -> Adapter:
    """A PEFT LoRA; `rank_pattern`, `alpha_pattern` and rsLoRA are honoured.

    Args:
        source: a folder, or a hub id (`org/name` or `org/name@revision`).

    Raises:
        ValueError: not a LoRA in safetensors, or one that is not known to be `B A` alone.
    """
    folder = located(source)
    fields = read_fields(folder)
    factors: dict[str, dict[str, Tensor]] = {}
    heads: dict[str, Tensor] = {}
    for name, tensor in _tensors(folder).items():
        if found := FACTOR.fullmatch(name.removeprefix(PREFIX)):
            home, key = factors.setdefault(found["module"], {}), found["side"]
        else:
            home, key = heads, _head(name, fields)
        if key in home:
            raise ValueError(f"{folder} holds two tensors of {name}: save one adapter alone")
        home[key] = tensor
    if not factors:
        raise ValueError(f"{folder} holds no factor of a LoRA: there is nothing to merge")
    updates = {name: _update(name, sides, fields) for name, sides in factors.items()}
    return Adapter(updates, heads, fields.base)


def read_expert(source: Path | str, heads: Sequence[str], outputs: int) -> Adapter:
    """An adapter that takes the place of a task's fine-tuning: its head must be there and fit, or
    be none where the task has none.

    Args:
        source: a folder, or a hub id.
        heads: the head modules of the model, as its config names them (`model.heads`).
        outputs: logits of the task.

    Raises:
        ValueError: what `read_adapter` raises, a head that is missing, or one of another task.
    """
    adapter = read_adapter(source)
    for head in heads:
        if not any(f".{head}." in f".{name}" for name in adapter.heads):
            raise ValueError(
                f"{source} has no head {head}, which its task needs: train it with "
                f"modules_to_save=[{', '.join(heads)}]"
            )
    if heads:
        _check_outputs(source, adapter.heads, outputs)
    elif adapter.heads:
        raise ValueError(
            f"{source} has a head, {min(adapter.heads)}, and its task is written without one: "
            "give an adapter of a causal language model"
        )
    return adapter


def _check_outputs(source: Path | str, heads: Mapping[str, Tensor], outputs: int) -> None:
    widths = {name: len(weight) for name, weight in heads.items() if weight.dim() == 2}
    last = min(widths, key=lambda name: widths[name], default=None)
    if last is None or widths[last] != outputs:
        found = "no matrix" if last is None else f"{widths[last]} outputs ({last})"
        raise ValueError(f"{source}: its head has {found}, its task needs {outputs}")


def write_adapter(
    folder: Path | str, updates: Mapping[str, LowRank], heads: Mapping[str, Tensor] = {}, **config
) -> None:
    """A plain PEFT folder whose scaling is 1 (`lora_alpha = r`), with float32 factors.

    Args:
        folder: made if it is not there.
        updates: one update a module, ranks may differ (`rank_pattern`).
        heads: head tensors to save beside the factors.
        config: further fields of `LoraConfig` (`base_model_name_or_path`, `task_type`, …).

    Raises:
        ValueError: there is no update, or a field that would make another update of it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lora_config(updates, **config).save_pretrained(folder)
    tensors = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in heads.items()}
    for name, update in updates.items():
        A, B = padded(update)
        tensors[f"{PREFIX}{name}.lora_A.weight"] = A.contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = B.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def lora_config(updates: Mapping[str, LowRank], **config):
    """PEFT's config of updates at scaling 1; its patterns name these modules and no others.

    PEFT takes a list of targets for endings of names: `layers.0.q` would adapt
    `vision.layers.0.q` too.

    Raises:
        ValueError: there is no update, or a field that would make another update of it.
    """
    from peft import LoraConfig

    if not updates:
        raise ValueError("there is no update to write")
    if others := [field for field in config if field not in ABOUT]:
        raise ValueError(
            f"{others[0]} is not for you to set: the update is written as it is, at scaling 1; "
            f"the fields to give are {', '.join(ABOUT)}"
        )
    ranks = {name: len(padded(update)[0]) for name, update in updates.items()}
    top = max(ranks.values())
    other = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != top}
    return LoraConfig(
        r=top, lora_alpha=top, rank_pattern=other, alpha_pattern=dict(other),
        target_modules="|".join(map(re.escape, sorted(updates))), inference_mode=True, **config,
    )  # fmt: skip


def padded(update: LowRank) -> tuple[Tensor, Tensor]:
    """Float32 factors for PEFT, which knows no rank 0: one zero direction stands for it."""
    A, B = update.A.float(), update.B.float()
    if update.rank:
        return A, B
    return A.new_zeros(1, A.shape[1]), B.new_zeros(len(B), 1)


def stacked(
    adapters: Sequence[Mapping[str, LowRank]], names: Sequence[str] = ()
) -> dict[str, LowRank]:
    """One stack a module over all tasks; an adapter without a module has rank 0 there.

    Args:
        adapters: each one's updates by module.
        names: of the adapters, for errors; `adapter 1`, … if there are none.

    Raises:
        ValueError: no adapters, one without an update, two that share no module, or deltas of one
            module that differ in shape.
    """
    if not adapters:
        raise ValueError("there is no adapter to merge")
    names = names or [f"adapter {i + 1}" for i in range(len(adapters))]
    check_related(adapters, names)
    modules = dict.fromkeys(module for adapter in adapters for module in adapter)
    return {module: _stack_of(module, adapters) for module in modules}


def _stack_of(module: str, adapters: Sequence[Mapping[str, LowRank]]) -> LowRank:
    like = next(adapter[module] for adapter in adapters if module in adapter)
    none = LowRank(like.A[:0], like.B[:, :0])
    return stack([adapter.get(module, none) for adapter in adapters])


def _tensors(folder: Path) -> dict[str, Tensor]:
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise ValueError(
            f"{folder} holds no adapter_model.safetensors; pickled adapters are not read"
        )
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{file} is not safetensors: {first_line(error)}") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES or not tensor.float().isfinite().all():
            raise ValueError(f"{folder}: {name} ({tensor.dtype}) is not finite, or no float at all")
    return tensors


def _head(name: str, fields: LoraFields) -> str:
    """The name in the base network of a tensor that is no factor."""
    own = re.sub(r"\.modules_to_save\.[^.]+", "", name.removeprefix(PREFIX))
    saved = fields.saved is None or any(f".{module}." in f".{own}" for module in fields.saved)
    if ".lora_" in own or not saved or not HEAD.search(own.rpartition(".")[0]):
        raise ValueError(
            f"{fields.where}: {name} is neither a factor of a linear LoRA nor part of a task's "
            "head, so that merging B A would lose it; train a plain LoRA without it"
        )
    return own


def _update(module: str, sides: Mapping[str, Tensor], fields: LoraFields) -> LowRank:
    where, rank = f"{fields.where}: {module}", fields.rank(module)
    if len(sides) < 2:
        raise ValueError(f"{where} lacks lora_{'AB'.strip(*sides)}, one half of its update")
    A, B = sides["A"].float(), sides["B"].float() * fields.scaling(module)
    if A.dim() != 2 or B.dim() != 2 or 0 in (*A.shape, *B.shape):
        raise ValueError(
            f"{where} has A {list(A.shape)} and B {list(B.shape)}; a linear module has A "
            "[rank, in] and B [out, rank]"
        )
    if not len(A) == B.shape[1] == rank:
        raise ValueError(
            f"{where} has A {list(A.shape)} and B {list(B.shape)}, its config rank {rank}: the "
            "tensors and the config are of two adapters"
        )
    if not B.isfinite().all():
        raise ValueError(f"{where} is not finite once it is scaled by {fields.scaling(module)}")
    return LowRank(A, B)
