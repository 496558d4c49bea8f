"""The command `python -m osrm_exp +experiment=quickstart -m`. One Hydra job is one cell."""

from __future__ import annotations

import logging
import multiprocessing
import os
import secrets
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from errno import (
    EACCES,
    EDQUOT,
    EEXIST,
    EIO,
    ELOOP,
    ENAMETOOLONG,
    ENOENT,
    ENOSPC,
    ENOTDIR,
    EPERM,
    EROFS,
)
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from osrm_exp import CONF, needs, searchpath, signals
from osrm_exp.compose import cell_from, plain
from osrm_exp.hub import first_line
from osrm_exp.identity import unpinned
from osrm_exp.overrides import STUDY, ordered, readable
from osrm_exp.report.callback import Report, summary
from osrm_exp.report.predictions import write_predictions
from osrm_exp.report.rows import is_done, rows_file, rows_in, write_rows
from osrm_exp.spec import Cell
from osrm_exp.status import RUN, told
from osrm_exp.study import check_study
from osrm_exp.trials import check_scored, scores_of, study

log = logging.getLogger("osrm_exp")
SENTENCES = (ValueError, OSError, HydraException, OmegaConfBaseException)  # a user can mend these
MANY = ("-m", "--multirun")
STUDIES = (STUDY, "hydra/sweeper=")
PLUGINS = {
    "hydra/launcher/submitit_slurm": "hydra-submitit-launcher",
    "hydra/launcher/ray": 'hydra-ray-launcher "joblib<1.6"',
}  # what brings these configs
UNWRITABLE = (
    EACCES, EDQUOT, EEXIST, EIO, ELOOP, ENAMETOOLONG, ENOENT, ENOSPC, ENOTDIR, EPERM, EROFS,
)  # fmt: skip
WANTS_TRACE = os.environ.get("HYDRA_FULL_ERROR") == "1"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(config: DictConfig) -> Any:
    """Runs one cell unless its rows exist; returns what a study is told of it. A failure is told
    and left to the report: it stops no other cell of a sweep."""
    signals.listen()
    logging.raiseExceptions = False  # a full disk is told once, not by every line of the log
    hydra_config = HydraConfig.get()
    folder, overrides = Path(hydra_config.runtime.output_dir), hydra_config.overrides.task
    with told(folder, list(overrides)) as status:
        try:
            found = plain(config)
            status["outcome"], rows = _cell(found)
            asked = found["optimized"]
            return scores_of(rows_in(rows), asked) if asked else None
        except SENTENCES as error:
            signals.outlast()
            status |= {"outcome": "failed", "reason": sentence(error)}
            if WANTS_TRACE:
                log.exception("%s", status["reason"])
        except Exception as error:  # a bug of ours: its trace is wanted
            signals.outlast()
            status |= {"outcome": "failed", "reason": f"{type(error).__name__}: {sentence(error)}"}
            log.exception("%s", status["reason"])
    return None


def _cell(config: dict[str, Any]) -> tuple[str, Path]:
    """What became of a cell, and the file of its rows."""
    start = time.perf_counter()
    check_study(config)
    cell = cell_from(config)
    check_scored(cell, config["optimized"])
    title = f"{cell.names['init']} / {cell.names['merge']} / seed {cell.seed}"
    results = config["paths"]["results"]
    rows = rows_file(results, cell.digest)
    if is_done(rows):
        log.info("%s: done before, skipped", title)
        return "skipped", rows
    with _written(results):  # known before hours of work
        Path(results).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=results) as file:
            file.write(bytes(2**16))
    _run(cell, config)
    log.info("%s: finished in %.0f s", title, time.perf_counter() - start)
    return "finished", rows


def _run(cell: Cell, config: dict[str, Any]) -> None:
    """Runs a cell and writes what it leaves behind; its rows last, which say that it is done."""
    if multiprocessing.parent_process() or not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # bars of two processes would overwrite each other
    from osrm_exp import diagnostics, pipeline  # torch: not before there is something to do
    from osrm_exp.artifacts import Workshop
    from osrm_exp.checkpoint import told_once
    from osrm_exp.logged import publish
    from osrm_exp.loggers import open_logger
    from osrm_exp.store import Store

    for what in filter(unpinned, (cell.model.weights, *(task.source for task in cell.tasks))):
        told_once(f"{what} names no revision: what the hub holds may change; revision=COMMIT pins")
    results = config["paths"]["results"]
    with open_logger(config["logger"], cell, config) as logger:
        store, progress = Store(config["paths"]["store"]), "TQDM_DISABLE" not in os.environ
        workshop = Workshop(store, logger=logger, progress=progress, **config["trainer"])
        outcome = pipeline.run(cell, workshop)
        diagnosed = {}
        if cell.diagnostics:
            name = needs.diagnosis(cell)
            if not is_done(rows_file(results, name, "diagnostics")):
                diagnosed[name] = diagnostics.diagnosed(cell, workshop)
        with _written(results):
            for name, rows in diagnosed.items():
                write_rows(results, name, rows, "diagnostics")
            if outcome.tried:
                write_rows(results, cell.digest, outcome.tried, "searches")
            write_predictions(results, cell.digest, outcome.predictions)
            write_rows(results, cell.digest, outcome.rows)
        if logger:
            publish(logger, results, cell.digest)


@contextmanager
def _written(results: str) -> Iterator[None]:
    """Says of results that are full or read-only what helps."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"the results in {results} cannot be written ({error}); paths.results=DIR takes "
            "another folder, and the same command continues"
        ) from error


def sentence(error: BaseException) -> str:
    """An error's text in one line; of what could not be merged also why."""
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ConfigCompositionException) and said.startswith("Error merging"):
        return f"{said}: {first_line(error.__cause__ or error)}"
    return said


def main() -> None:
    """The command line; what a user can mend is told in one sentence."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise to us instead of printing frames
    os.environ[RUN] = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{secrets.token_hex(4)}"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("huggingface_hub").propagate = False  # it prints by itself
    _hydra()
    sys.exit(1 if Report.failed else 0)


def _jobs() -> None:
    """Hands what was typed to Hydra, readable and in order; a study adds what is left of it."""
    given = ordered([*map(readable, searchpath.typed(sys.argv[1:])), *searchpath.override()])
    many = bool(set(given) & set(MANY))
    typed = [one for one in given if "=" in one and one[0] != "-"]
    asked = many or any(one.lstrip("+").startswith(STUDIES) for one in typed)
    opened: AbstractContextManager = study(typed, many) if asked else nullcontext([])
    with opened as more:
        given += more  # behind what was typed, which they take the place of
        sys.argv[1:] = sorted(given, key=MANY.__contains__)  # Hydra wants -m last
        job()


def _hydra() -> None:
    try:
        _jobs()
    except SENTENCES as error:
        if WANTS_TRACE:
            raise
        sys.exit(_blame(error))
    except BrokenExecutor:
        sys.exit(
            "osrm_exp: a worker process was killed, most likely for want of memory; the same "
            "command continues, and hydra/launcher=serial runs one cell at a time"
        )
    except Exception as error:
        if WANTS_TRACE or not _of_a_cluster(error):
            raise
        sys.exit(
            f"osrm_exp: {sentence(error)[:500]}; other jobs may go on, python -m osrm_exp.status "
            "tells; the same command continues"
        )


def _blame(error: BaseException) -> str:
    """What stopped Hydra itself, with the way out; what its cells came to is told before."""
    what = getattr(error, "missing_cfg_file", None)
    lacks = f"{what} is not installed: pip install {PLUGINS[what]}" if what in PLUGINS else ""
    said = lacks or sentence(error)
    if Report.folder and Report.folder.is_dir():
        summary(Report.folder, len(Report.cells))
    # what a cell writes elsewhere is told by the cell: these are Hydra's files, and its status
    unwritten = isinstance(error, OSError) and error.errno in UNWRITABLE
    way_out = "; paths.logs=DIR takes another folder for the logs" if unwritten else ""
    return f"osrm_exp: {Report.blamed(error)}{said}{way_out}"


def _of_a_cluster(error: BaseException) -> bool:
    """Whether submitit or Ray raised it: no cluster here, a job that was cancelled or lost."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and bool({"submitit", "ray"} & set(Path(frames[-1].filename).parts))
