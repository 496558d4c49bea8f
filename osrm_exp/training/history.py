"""What a fine-tuning was, epoch by epoch, and where it goes on after an interruption.

A curve is what a logger is told while an adapter is trained, `[step, {name: value}]` in order: kept
with the adapter, it is told again, the same, to the logger of a cell that finds the adapter built.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch

Point = tuple[int, dict[str, float]]


def replay(curve: Iterable[Point], logger: Any) -> None:
    """Tells a Lightning logger, if there is one, what it would have heard from the training."""
    for step, metrics in curve if logger else ():
        logger.log_metrics(metrics, step)


class History(pl.Callback):
    """Keeps the curve of a fine-tuning: losses, every metric, learning rate and seconds.

    A checkpoint carries it, and torch's random state with it, so that a fine-tuning that goes on
    draws the masks of its dropout as if it had never stopped.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self.curve: list[Point] = []
        self.losses: list[float] = []
        self.start = 0.0
        self.random: torch.Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        replay(self.curve, trainer.logger)  # of an attempt from which this one goes on

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.losses, self.start = [], time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.random is not None:
            torch.set_rng_state(self.random)
            torch.empty((), dtype=torch.int64).random_()  # what a loader draws when it is opened
            self.random = None

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:  # fmt: skip
        loss: Any = trainer.strategy.reduce(outputs["loss"], reduce_op="mean")  # of all ranks
        self.losses.append(float(loss))
        if trainer.global_step % trainer.log_every_n_steps == 0:
            self._tell(trainer, {f"{pl_module.task.name}/loss": self.losses[-1]})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        logged |= {name: sum(self.losses) / len(self.losses) for name in logged if "/loss" in name}
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        seconds = round(time.perf_counter() - self.start, 2)
        self.epochs.append({"epoch": len(self.epochs), **logged, "lr": rate, "seconds": seconds})
        told = {k.replace("/loss", "/epoch_loss"): v for k, v in logged.items() if "/" in k}
        self._tell(trainer, {**told, f"{pl_module.task.name}/lr": rate})

    def _tell(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        self.curve.append((trainer.global_step, metrics))
        replay(self.curve[-1:], trainer.logger)

    def state_dict(self) -> dict[str, Any]:
        kept = {"epochs": self.epochs, "curve": self.curve}
        return {**kept, "random": torch.get_rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs, self.random = list(state_dict["epochs"]), state_dict["random"]
        self.curve = list(state_dict.get("curve", ()))  # older checkpoints have none
