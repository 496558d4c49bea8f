"""The Lightning callback that starts an adapter where an initialisation says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor


class InitializeLora(pl.Callback):
    """Writes `A` into the adapter before the optimizer exists, and does nothing else.

    Args:
        A: `{module: [rank, in]}`, names as in the network without its PEFT wrapper.
        freeze: "A" or "B" keeps that factor where it starts, "both" keeps both; None trains both.
        adapter: name of the PEFT adapter.

    B stays as PEFT made it (zero), so the network's outputs are unchanged by the callback.
    """

    def __init__(
        self, A: Mapping[str, Tensor], freeze: str | None = None, adapter: str = "default"
    ) -> None:
        self.A, self.freeze, self.adapter = A, freeze, adapter

    @torch.no_grad()
    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        layers = pl_module.lora_layers()
        unknown = set(self.A) - set(layers)
        if unknown:
            raise ValueError(f"the network adapts no module {sorted(unknown)[0]!r}")
        for name, A in self.A.items():
            weight = layers[name].lora_A[self.adapter].weight
            if weight.shape != A.shape:
                raise ValueError(f"{name}: A is {list(A.shape)}, expected {list(weight.shape)}")
            weight.copy_(A)
        for layer in layers.values():
            for name, factor in {"A": layer.lora_A, "B": layer.lora_B}.items():
                if self.freeze in (name, "both"):
                    factor[self.adapter].weight.requires_grad_(False)
