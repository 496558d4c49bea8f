"""Where artifacts are built and cells are scored."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from transformers import AutoConfig

from osrm_exp.checkpoint import dropout_rates, read
from osrm_exp.spec import FineTune
from osrm_exp.store import Store

log = logging.getLogger("osrm_exp")


@dataclass
class Workshop:
    """A store and devices; nothing here changes what comes out.

    Fine-tunings run on all `devices`, everything else on the first.

    Raises:
        ValueError: more GPUs are asked for than there are.
    """

    store: Store
    accelerator: str = "cpu"
    devices: int = 1
    logger: Any = None
    progress: bool = True
    untold: set[str] = field(default_factory=set)  # whose curves the logger waits for, by digest

    def __post_init__(self) -> None:
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ValueError("trainer=gpu, but torch sees no GPU here: trainer=cpu runs without")
        if self.accelerator == "gpu" and self.devices > (here := torch.cuda.device_count()):
            raise ValueError(f"trainer.devices={self.devices}, but torch sees {here} GPU here")

    def check(self, wanted: Sequence[Any]) -> None:
        """Whether several devices would train each of these to what one device makes of it.

        Raises:
            ValueError: a batch that cannot be dealt out evenly, or dropout, whose masks would be
                other ones: another adapter under the same address.
        """
        several = f"trainer.devices={self.devices}"
        for one in wanted if self.devices > 1 else []:
            if not isinstance(one, FineTune) or self.store.has(one):
                continue
            if one.tuning.batch_size % self.devices:
                raise ValueError(
                    f"tuning.batch_size={one.tuning.batch_size} of {one.task.name} cannot be dealt "
                    f"out evenly to {several}: choose a number of devices that divides it"
                )
            if rates := _dropout(one):
                raise ValueError(
                    f"{several} would draw other masks of dropout than one device does "
                    f"({', '.join(rates)}): tuning.dropout=0 tuning.lora.lora_dropout=0 trains "
                    "without, trainer.devices=1 with it"
                )

    def tell_cost(self, precision: str) -> None:
        """Says what a precision costs that this machine has no units for."""
        if precision == "bf16" and self.accelerator == "cpu" and (times := _slower_in_bf16()) > 2:
            log.warning(
                "tuning.precision=bf16: a matrix product takes %.0f times as long as in fp32 on "
                "this CPU, which has no bf16 units; tuning.precision=fp32 is faster here, and "
                "another run",
                times,
            )

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.accelerator == "gpu" else "cpu")


def _dropout(spec: FineTune) -> list[str]:
    """Where a fine-tuning drops out: its own settings, else its checkpoint's."""
    tuning = spec.tuning
    found = {"tuning.lora.lora_dropout": tuning.lora.lora_dropout}
    if tuning.dropout is None:
        found |= dropout_rates(read(AutoConfig, spec.model))
    else:
        found["tuning.dropout"] = tuning.dropout
    return [f"{key}={rate:g}" for key, rate in found.items() if rate]


@cache
def _slower_in_bf16(width: int = 384) -> float:
    """How many times as long as in float32 a product takes in bfloat16, on this CPU."""
    x = torch.ones(width, width)
    single, half = _seconds(x), _seconds(x.bfloat16())
    return half / single


def _seconds(x: torch.Tensor) -> float:
    """Of the fastest of three products."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        torch.mm(x, x)
        found.append(time.perf_counter() - start)
    return min(found)
