"""Experiment loggers: one run a cell, grouped by experiment, closed when its job ends."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hydra.utils import instantiate

from osrm_exp.spec import Cell, check_target


@contextmanager
def open_logger(config: Mapping[str, Any], cell: Cell, everything: Mapping[str, Any]) -> Iterator:
    """The Lightning logger of a cell, or None where none is asked for."""
    check_target("logger", config, keywords=["name"])
    if config.get("_target_") is None:
        yield None
        return
    name = f"{cell.names['init']}-{cell.names['merge']}-s{cell.seed}"
    logger = instantiate(config, _partial_=True)(name=name)
    logger.log_hyperparams(
        {k: v for k, v in everything.items() if k not in ("paths", "names", "logger")}
    )
    try:
        yield logger
        logger.finalize("success")
    finally:
        if type(logger).__name__ == "WandbLogger":
            import wandb

            wandb.finish()  # else the next job of a sequential sweep writes into this run


def wandb_logger(*, name: str, project: str, group: str, save_dir: str):
    """A wandb run, offline unless the user is logged in or WANDB_MODE says otherwise."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    offline = "WANDB_MODE" not in os.environ and not wandb.login(prompt=False)
    mode = {"mode": "offline"} if offline else {}
    os.makedirs(save_dir, exist_ok=True)
    return WandbLogger(name=name, project=project, group=group, save_dir=save_dir, **mode)


def tensorboard_logger(*, name: str, group: str, save_dir: str):
    """TensorBoard event files under `save_dir/group/name`."""
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(save_dir, name=f"{group}/{name}")
