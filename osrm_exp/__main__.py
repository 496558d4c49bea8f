"""The entry: `python -m osrm_exp +experiment=quickstart -m`. One Hydra job is one cell."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from osrm_exp import CONF, needs
from osrm_exp.compose import cell_from, plain
from osrm_exp.report.callback import Report
from osrm_exp.report.predictions import write_predictions
from osrm_exp.report.rows import is_done, rows_file, write_rows
from osrm_exp.spec import Cell

log = logging.getLogger("osrm_exp")
SENTENCES = (ValueError, OSError, HydraException, OmegaConfBaseException)  # a user can mend these
WANTS_TRACE = os.environ.get("HYDRA_FULL_ERROR") == "1"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(config: DictConfig) -> None:
    """Runs one cell unless its rows exist. A failure is told and left to the report: it stops no
    other cell of a sweep."""
    status = {"outcome": "failed", "overrides": list(HydraConfig.get().overrides.task)}
    try:
        status["outcome"] = _cell(plain(config))
    except SENTENCES as error:
        status["reason"] = sentence(error)
        log.error("%s", status["reason"], exc_info=WANTS_TRACE)
    except Exception as error:  # a bug of ours: its trace is wanted
        status["reason"] = f"{type(error).__name__}: {sentence(error)}"
        log.exception("%s", status["reason"])
    finally:
        folder = Path(HydraConfig.get().runtime.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "status.json").write_text(json.dumps(status))


def _cell(config: dict[str, Any]) -> str:
    start = time.perf_counter()
    cell = cell_from(config)
    title = f"{cell.names['init']} / {cell.names['merge']} / seed {cell.seed}"
    results = config["paths"]["results"]
    if is_done(rows_file(results, cell.digest)):
        log.info("%s: done before, skipped", title)
        return "skipped"
    _run(cell, config)
    log.info("%s: finished in %.0f s", title, time.perf_counter() - start)
    return "finished"


def _run(cell: Cell, config: dict[str, Any]) -> None:
    """Runs a cell and writes what it leaves behind; its rows last, which say that it is done."""
    if multiprocessing.parent_process():  # a launcher's worker
        os.environ["TQDM_DISABLE"] = "1"  # bars of two processes would overwrite each other
    from osrm_exp import diagnostics, pipeline  # torch: not before there is something to do
    from osrm_exp.artifacts import Workshop
    from osrm_exp.loggers import open_logger
    from osrm_exp.store import Store

    results = config["paths"]["results"]
    with open_logger(config["logger"], cell, config) as logger:
        store = Store(config["paths"]["store"])
        progress = "TQDM_DISABLE" not in os.environ
        workshop = Workshop(store, logger=logger, progress=progress, **config["trainer"])
        outcome = pipeline.run(cell, workshop)
        if logger:
            headline = {f"merged/{r['task']}": r["value"] for r in outcome.rows if r["headline"]}
            headline["merged/average"] = sum(headline.values()) / len(headline)
            logger.log_metrics(headline)
        name = needs.diagnosis(cell)
        if cell.diagnostics and not is_done(rows_file(results, name, "diagnostics")):
            write_rows(results, name, diagnostics.diagnosed(cell, workshop), "diagnostics")
    if outcome.tried:
        write_rows(results, cell.digest, outcome.tried, "searches")
    write_predictions(results, cell.digest, outcome.predictions)
    write_rows(results, cell.digest, outcome.rows)


def sentence(error: BaseException) -> str:
    """An error's text in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def main() -> None:
    """Runs Hydra; what a user can mend is told in one sentence."""
    sys.argv[1:] = sorted(
        sys.argv[1:], key=("-m", "--multirun").__contains__
    )  # Hydra wants -m last
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise to us instead of printing frames
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("huggingface_hub").propagate = False  # it prints by itself
    try:
        job()
    except SENTENCES as error:
        if WANTS_TRACE:
            raise
        sys.exit(f"osrm_exp: {sentence(error)}")
    except BrokenExecutor:
        sys.exit(
            "osrm_exp: a worker process was killed, most likely for want of memory; the same "
            "command continues, and hydra/launcher=basic runs one cell at a time"
        )
    except KeyboardInterrupt:
        print("\nosrm_exp: interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
    sys.exit(1 if Report.failed else 0)


if __name__ == "__main__":
    main()
