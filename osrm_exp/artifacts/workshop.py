"""Where artifacts are built and cells are scored."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from osrm_exp.store import Store

log = logging.getLogger("osrm_exp")


@dataclass
class Workshop:
    """A store and a device; nothing here changes what comes out.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """

    store: Store
    accelerator: str = "cpu"
    logger: Any = None
    progress: bool = True
    untold: set[str] = field(default_factory=set)  # whose curves the logger waits for, by digest

    def __post_init__(self) -> None:
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ValueError("trainer=gpu, but torch sees no GPU here: trainer=cpu runs without")

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
