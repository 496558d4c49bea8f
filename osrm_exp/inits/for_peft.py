"""OSRM for any PEFT model, in the shape of PEFT's own data-driven initialisations.

    model = get_peft_model(base, LoraConfig(r=8, target_modules=["query", "value"]))
    start = get_osrm_state_dict(
        model, {"mnli": mnli, "qqp": qqp, "rte": rte},
        exclude="rte", level="token", tie_break="random", seed=0,
    )
    initialize_lora_osrm_weights(model, start)

Base weights are untouched, `B` stays zero, and what is saved is a plain LoRA that every tool loads.
Initialise before the optimizer exists. With several tasks to train, `collect_grams` visits each
task's data once, and `osrm_state_dict` then serves every task.

Zhang & Zhou, ACL 2025, arXiv 2505.22934.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from tqdm import tqdm

from osrm_exp import inits, statistics

Grams = Mapping[str, Mapping[str, Tensor]]  # task -> module -> [in, in]


def get_osrm_state_dict(
    model: PeftModel,
    dataloaders: Mapping[str, Iterable],
    *,
    exclude: str | None,
    level: str,
    tie_break: str,
    seed: int,
    prepare_model_inputs_fn: Callable[[Any], Mapping[str, Tensor]] | None = None,
    adapter_name: str = "default",
    show_progress_bar: bool = True,
) -> dict[str, Tensor]:
    """OSRM's `A [rank, in]` of every adapted module, orthogonal to the data of the other tasks.

    Args:
        model: with the adapter that is to be initialised; its adapters are off meanwhile.
        dataloaders: a task's sample (the paper takes 100) as batches with an attention mask.
        exclude: the task that the adapter is for; None if `dataloaders` holds only the others.
        level: `token` or `sample`, what a row of the data is (`statistics.gram`).
        tie_break: which minimum, if there are many (`inits.osrm`).
        seed: of a random tie break.
        prepare_model_inputs_fn: turns what a loader yields into the model's keyword arguments.
        adapter_name: whose modules and ranks (`rank_pattern` included) count.
        show_progress_bar: over the batches of all loaders.

    Returns:
        `{module: A}`, named as in the base model.

    Raises:
        ValueError: no such adapter or task, no other task, or data that does not reach a module.
    """
    wanted = dict(dataloaders)
    _check_task(wanted, exclude)
    if exclude is not None and tie_break != "own_energy":
        wanted.pop(exclude, None)
    grams = collect_grams(
        model,
        wanted,
        level=level,
        prepare_model_inputs_fn=prepare_model_inputs_fn,
        adapter_name=adapter_name,
        show_progress_bar=show_progress_bar,
    )
    exclude = exclude if exclude in grams else None
    return osrm_state_dict(
        model, grams, exclude=exclude, tie_break=tie_break, seed=seed, adapter_name=adapter_name
    )


def collect_grams(
    model: PeftModel,
    dataloaders: Mapping[str, Iterable],
    *,
    level: str,
    prepare_model_inputs_fn: Callable[[Any], Mapping[str, Tensor]] | None = None,
    adapter_name: str = "default",
    show_progress_bar: bool = True,
) -> dict[str, dict[str, Tensor]]:
    """Grams `{task: {module: [in, in]}}` of the base model's inputs, padding left out.

    One pass over each loader, on the model's device; one float64 matrix for each task and distinct
    input (q, k and v share theirs) in CPU memory. Arguments as in `get_osrm_state_dict`.
    """
    modules = list(_lora_layers(model, adapter_name))
    prepare = prepare_model_inputs_fn or dict
    training = model.training
    grams = {}
    model.eval()
    try:
        with model.disable_adapter():
            for task, loader in dataloaders.items():
                batches = tqdm(loader, desc=f"OSRM: {task}", disable=not show_progress_bar)
                grams[task] = statistics.gram(
                    model.get_base_model(),
                    ({k: v.to(model.device) for k, v in prepare(b).items()} for b in batches),
                    modules,
                    level=level,
                    include_padding=False,
                )
    finally:
        model.train(training)
    return grams


def osrm_state_dict(
    model: PeftModel,
    grams: Grams,
    *,
    exclude: str | None,
    tie_break: str,
    seed: int,
    adapter_name: str = "default",
) -> dict[str, Tensor]:
    """`get_osrm_state_dict` from grams that were collected before."""
    _check_task(grams, exclude)
    others = [task for task in grams if task != exclude]
    if not others:
        raise ValueError("OSRM needs the data of at least one other task")
    found: dict[tuple, Tensor] = {}  # modules that share a gram and a rank share one A
    state = {}
    for name, layer in _lora_layers(model, adapter_name).items():
        rank = layer.r[adapter_name]
        key = (rank, *(id(grams[task][name]) for task in grams))
        if key not in found:
            found[key] = inits.osrm(
                layer.in_features,
                rank,
                generator=torch.Generator().manual_seed(seed + len(found)),
                others=torch.stack([grams[task][name] for task in others]),
                own=None if exclude is None else grams[exclude][name],
                tie_break=tie_break,
            )
        state[name] = found[key]
    return state


@torch.no_grad()
def initialize_lora_osrm_weights(
    model: PeftModel, osrm_state_dict: Mapping[str, Tensor], adapter_name: str = "default"
) -> None:
    """Write `{module: A}` into the adapter's `lora_A`; all of it or, on an error, nothing.

    Raises:
        ValueError: the modules or shapes differ from the adapter's, or `B` is not zero: a trained
            adapter, or an initialisation that depends on its own `A`.
    """
    layers = _lora_layers(model, adapter_name)
    if strange := sorted(osrm_state_dict.keys() ^ layers.keys()):
        where = "adapter" if strange[0] in osrm_state_dict else "state dict"
        raise ValueError(f"{strange[0]} ({len(strange)} modules) is not in the {where}")
    for name, layer in layers.items():
        A, weight = osrm_state_dict[name], layer.lora_A[adapter_name].weight
        if A.shape != weight.shape:
            raise ValueError(
                f"{name}: A is {list(A.shape)} but the adapter's is {list(weight.shape)}: "
                "compute it for this adapter's ranks"
            )
        if layer.lora_B[adapter_name].weight.any():
            raise ValueError(
                f"{name}: B is not zero; OSRM starts a new adapter, init_lora_weights=True"
            )
    for name, layer in layers.items():
        layer.lora_A[adapter_name].weight.copy_(osrm_state_dict[name])


def _lora_layers(model: PeftModel, adapter_name: str) -> dict[str, Any]:
    """The linear LoRA layers that have this adapter, by their name in the base model."""
    if not isinstance(model, PeftModel):
        raise ValueError(f"{type(model).__name__} is no PeftModel: wrap it with get_peft_model")
    layers = {
        name: layer
        for name, layer in model.get_base_model().named_modules()
        if isinstance(layer, LoraLayer) and adapter_name in layer.lora_A
    }
    if not layers:
        raise ValueError(
            f"no linear LoRA layer has the adapter {adapter_name!r}; the model has: "
            f"{', '.join(model.peft_config)}"
        )
    return layers


def _check_task(tasks: Mapping[str, Any], exclude: str | None) -> None:
    if exclude is not None and exclude not in tasks:
        raise ValueError(f"exclude={exclude!r} is no task; there are: {', '.join(tasks)}")
