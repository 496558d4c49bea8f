"""Where artifacts are built and cells are scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from osrm_exp.store import Store


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

    def __post_init__(self) -> None:
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ValueError("trainer=gpu, but torch sees no GPU here: trainer=cpu runs without")

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.accelerator == "gpu" else "cpu")
