"""Experiment loggers: one run a cell, grouped by experiment, closed when its job ends.

A logger's function is a context: it gives a Lightning logger with `log_table` and `log_image`, and
closes it as its cell ended. What a run carries is in `osrm_exp.logged`.
"""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from osrm_exp.call import split
from osrm_exp.logged import facts
from osrm_exp.pipeline import said_of
from osrm_exp.report.sealed import in_place
from osrm_exp.spec import Cell

log = logging.getLogger("osrm_exp")
APART = ("paths", "names", "logger")  # of a config, what is of this machine or said elsewhere
LOCAL = re.compile(r"(?<![\w.@-])(?:~[\w-]*|\.{1,2})?/.*$")  # no hub id, which has a name first
SECRET = re.compile(r"\b(?:hf_|ghp_|sk-)\w{8,}|\b[0-9a-f]{40}\b")


@contextmanager
def open_logger(
    config: Mapping[str, Any], cell: Cell, everything: Mapping[str, Any]
) -> Iterator[Any]:
    """The logger of a cell, or None where none is asked for. It hears why a cell failed."""
    call, _ = split(config, ())
    if call:
        call.check("logger", keywords=["name", "cell"])
    name = f"{cell.names['init']}-{cell.names['merge']}-s{cell.seed}-{cell.digest[:8]}"
    opened: AbstractContextManager = call(name=name, cell=cell.digest) if call else nullcontext()
    with opened as logger:
        if logger is None:
            yield None
            return
        kept = {key: public(one) for key, one in everything.items() if key not in APART}
        logger.log_hyperparams({**kept, "cell": facts(said_of(cell, cell.merge))})
        try:
            yield logger
        except BaseException as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            with suppress(Exception):  # a logger that is gone hides no reason
                logger.log_hyperparams({"outcome": "failed", "reason": public(reason)})
            raise


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
    quiet = wandb.Settings(x_disable_meta=True, console="off", disable_git=True, host="(local)")
    offline = "WANDB_MODE" not in os.environ and not wandb.login(prompt=False)
    mode: dict[str, Any] = {"mode": "offline"} if offline else {"resume": "allow"}
    if offline:
        log.info("not logged in to wandb: %s keeps the run, `wandb sync` sends it", save_dir)
    os.makedirs(save_dir, exist_ok=True)
    with _run_id(Path(save_dir) / "unfinished" / cell) as run:
        logger = WandbLogger(
            name=name, id=run, project=project, group=group, save_dir=save_dir, settings=quiet,
            **mode,
        )  # fmt: skip
        try:
            yield logger
            logger.finalize("success")
        except BaseException:
            with suppress(Exception):  # its service may have heard the same signal, and be gone
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
    from osrm_exp.local_loggers import TensorBoard

    yield from _closed(TensorBoard(save_dir, name=f"{group}/{name}", version=cell))


@contextmanager
def csv_logger(*, name: str, cell: str, group: str, save_dir: str) -> Iterator[Logger]:
    """`metrics.csv`, `hparams.yaml`, tables and pictures under `save_dir/group/name/cell`."""
    from osrm_exp.local_loggers import Csv

    yield from _closed(Csv(save_dir, name=f"{group}/{name}", version=cell))


def _closed(logger: Any) -> Iterator[Logger]:
    status = "failed"
    try:
        yield logger
        status = "success"
    finally:
        logger.close(status)
