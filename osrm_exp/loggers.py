"""Experiment loggers: one run a cell, grouped by experiment, closed when its job ends.

A logger's function is a context: it gives a Lightning logger, and closes it as its cell ended.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from osrm_exp.call import split
from osrm_exp.report.sealed import in_place
from osrm_exp.spec import Cell

LOCAL = re.compile(r"(?<![\w.@-])(?:~[\w-]*|\.{1,2})?/.*$")  # no hub id, which has a name first
SECRET = re.compile(r"\b(?:hf_|ghp_|sk-)\w{8,}|\b[0-9a-f]{40}\b")


@contextmanager
def open_logger(
    config: Mapping[str, Any], cell: Cell, everything: Mapping[str, Any]
) -> Iterator[Logger | None]:
    """The Lightning logger of a cell, or None where none is asked for."""
    call, _ = split(config, ())
    if call:
        call.check("logger", keywords=["name", "cell"])
    name = f"{cell.names['init']}-{cell.names['merge']}-s{cell.seed}"
    opened: AbstractContextManager = nullcontext()
    if call:
        opened = call(name=name, cell=cell.digest)
    with opened as logger:
        if logger:
            apart = ("paths", "names", "logger")
            logger.log_hyperparams({k: public(v) for k, v in everything.items() if k not in apart})
        yield logger


def public(value: Any) -> Any:
    """A part of a config without what concerns this machine alone: local paths, tokens."""
    if isinstance(value, Mapping):
        return {key: public(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [public(one) for one in value]
    if not isinstance(value, str):
        return value
    key, equals, last = value.rpartition("=")
    if "/" in last and Path(last.strip("'\"")).exists():
        return f"{key}{equals}(local)"
    return SECRET.sub("(secret)", LOCAL.sub("(local)", value))


@contextmanager
def wandb_logger(
    *, name: str, cell: str, project: str, group: str, save_dir: str
) -> Iterator[Logger]:
    """A wandb run, offline unless the user is logged in or WANDB_MODE says otherwise.

    It is finished with its cell, and as failed where that failed: the next job of a sequential
    sweep would else write into this run. A cell that was cut short goes on in the same run.
    """
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    # the command, the host and what is printed hold paths of this machine
    quiet = wandb.Settings(x_disable_meta=True, console="off", disable_git=True)
    offline = "WANDB_MODE" not in os.environ and not wandb.login(prompt=False)
    mode: dict[str, Any] = {"mode": "offline"} if offline else {"resume": "allow"}
    with _run_id(Path(save_dir) / "unfinished" / cell) as run:
        logger = WandbLogger(
            name=name, id=run, project=project, group=group, save_dir=save_dir, settings=quiet,
            **mode,
        )  # fmt: skip
        try:
            yield logger
            logger.finalize("success")
        except BaseException:
            wandb.finish(exit_code=1)
            raise
        wandb.finish()


@contextmanager
def _run_id(file: Path) -> Iterator[str]:
    """An id that a file keeps until its cell has ended well."""
    if not (file.is_file() and file.read_text()):
        with in_place(file) as scratch:
            scratch.write_text(uuid.uuid4().hex[:12])
    yield file.read_text()
    file.unlink(missing_ok=True)


@contextmanager
def tensorboard_logger(*, name: str, cell: str, group: str, save_dir: str) -> Iterator[Logger]:
    """TensorBoard event files under `save_dir/group/name/cell`."""
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        logger = TensorBoardLogger(save_dir, name=f"{group}/{name}", version=cell)
    except ModuleNotFoundError:
        raise ValueError("logger=tensorboard needs it: pip install tensorboard") from None
    yield logger
    logger.finalize("success")
