"""How an adapter starts: as PEFT starts it, from an init's function, or from another adapter."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from osrm_exp.artifacts.peft_factors import Layers, continue_from, factors, moved
from osrm_exp.artifacts.statistic import owners, read_stacked, read_statistic
from osrm_exp.artifacts.workshop import Workshop
from osrm_exp.call import Call
from osrm_exp.inits import row_norm
from osrm_exp.lazy import Lazy
from osrm_exp.lora import LowRank
from osrm_exp.model import adapted_modules, load_backbone, transposed
from osrm_exp.spec import FineTune
from osrm_exp.tasks import data

log = logging.getLogger("osrm_exp")


class Start(NamedTuple):
    """Where the factors of a network begin."""

    A: dict[str, Tensor]  # [rank, in] by module
    moved: dict[str, LowRank]  # what PEFT moved from base weights into the factors, by module


def network(spec: FineTune) -> PeftModel:
    """The backbone with a new head and LoRA as PEFT starts it, drawn from torch's seed."""
    tuning, lora, init = spec.tuning, spec.tuning.lora, spec.init
    net = load_backbone(
        spec.model, spec.task.outputs, precision=tuning.precision, dropout=tuning.dropout,
        auto=spec.task.kind.auto,
    )  # fmt: skip
    modules = adapted_modules(net, spec.model, lora.blocks, lora.r)
    start: Any = init.peft  # one of PEFT's words, which PEFT checks
    if tuning.gradient_checkpointing:
        # the reentrant form gives LoRA under frozen embeddings a gradient of exactly zero
        net.gradient_checkpointing_enable({"use_reentrant": False})
    config = LoraConfig(
        task_type=spec.task.kind.task_type, target_modules=list(modules),
        modules_to_save=list(spec.model.heads) or None, fan_in_fan_out=transposed(modules),
        init_lora_weights=start, **lora.model_dump(exclude={"blocks"}),
    )  # fmt: skip
    if init.prepare:
        rows = rows_of(spec).batches("train", 1, init.prepare.samples)
        init.prepare.call(net, config, rows)
    return get_peft_model(net, config)


def begin(spec: FineTune, net: PeftModel, layers: Layers, workshop: Workshop) -> Start:
    """Where the factors of a new network begin; with `intermediate` it is given that adapter's."""
    was = moved(layers)
    if spec.intermediate:
        continue_from(net, workshop.store.get(spec.intermediate, workshop))
    if spec.init.call and not spec.intermediate:
        return Start(_drawn(spec, spec.init.call, layers, workshop), was)
    return Start({name: factors(layer)[0] for name, layer in layers.items()}, was)


def rows_of(spec: FineTune) -> data.TaskData:
    """The tokenised rows of a fine-tuning."""
    tuning = spec.tuning
    return data.load(spec.task, spec.model, tuning.max_length, tuning.truncation_side)


def _drawn(spec: FineTune, call: Call, layers: Layers, workshop: Workshop) -> dict[str, Tensor]:
    """`A` by the init's function; modules whose statistics are the same (q and v) share one."""
    read, owner = _statistics(spec, workshop)
    keys = {name: _key(name, owner, spec.init.tied) for name in layers}
    found: dict[tuple[str, ...], Tensor] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name, key in keys.items():
            if key in found:
                continue
            tensors = {k: statistic[name] for k, statistic in read.items()}
            width, generator = layers[name].in_features, _generator(spec, key[0])
            A = call(width, spec.tuning.lora.r, generator=generator, **tensors)
            found[key] = row_norm(A, spec.init.row_norm)
    if caught:
        said = caught[-1].message
        log.warning("%s, %d of %d inputs: %s", spec.task.name, len(caught), len(found), said)
    return {name: found[key].clone() for name, key in keys.items()}


def _statistics(
    spec: FineTune, workshop: Workshop
) -> tuple[dict[str, Lazy[Tensor]], list[dict[str, str]]]:
    """What the init's function takes, by keyword and module; who owns each module's statistics."""
    folder = workshop.store.folder
    own = {k: folder(one) for k, one in spec.own.items()}
    others = {k: [folder(one) for one in statistics] for k, statistics in spec.others.items()}
    read = {k: read_statistic(path) for k, path in own.items()}
    read |= {k: read_stacked(paths) for k, paths in others.items()}
    return read, [owners(path) for path in (*own.values(), *chain(*others.values()))]


def _key(module: str, owner: Sequence[Mapping[str, str]], tied: bool) -> tuple[str, ...]:
    """What modules that share an A have in common: their statistics, or their layer."""
    if tied:
        return (module.rpartition(".")[0],)
    return tuple(of[module] for of in owner) or (module,)


def _generator(spec: FineTune, module: str) -> torch.Generator:
    who = "" if spec.init.shared else spec.task.name
    digest = hashlib.sha256("/".join((str(spec.seed), who, module)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
