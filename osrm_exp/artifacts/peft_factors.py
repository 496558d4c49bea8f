"""The factors of a network with PEFT adapters: read, replaced, told from moved weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor

from osrm_exp.lora import LowRank, stack

Layers = Mapping[str, LoraLayer]


def continue_from(net: PeftModel, folder: Path) -> None:
    """Puts an adapter's factors into the network, and its head tensors where they fit."""
    new = get_peft_model_state_dict(net, save_embedding_layers=False)
    found = load_file(folder / "adapter_model.safetensors")
    set_peft_model_state_dict(
        net, {k: t if t.shape == new[k].shape else new[k] for k, t in found.items()}
    )


def factors(layer: LoraLayer) -> list[Tensor]:
    """`A [rank, in]` and `B [out, rank]` as they stand."""
    sides = (layer.lora_A["default"], layer.lora_B["default"])
    return [side.get_parameter("weight").detach().clone() for side in sides]


def moved(layers: Layers) -> dict[str, LowRank]:
    """What an initialisation of PEFT's (pissa, olora) moved from the base weights into the factors.

    The network then computes `W - s B0 A0 + s B A`, so the delta against the original weight is
    `s (B A - B0 A0)`, of twice the rank. Empty where `B A` starts at zero.
    """
    found = {}
    for name, layer in layers.items():
        A, B = factors(layer)
        if (B @ A).norm() > 1e-4 * B.norm() * A.norm():
            found[name] = LowRank(A.float(), B.float() * layer.scaling["default"])
    return found


def minus(update: LowRank, start: LowRank) -> LowRank:
    """What an adapter has learned since its start, of the two ranks' sum."""
    return stack([update, start * -1]).total()
