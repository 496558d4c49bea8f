"""The entry: `python -m osrm_exp +experiment=quickstart -m`. One Hydra job is one cell."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from osrm_exp import CONF
from osrm_exp.results import rows_file, write_rows
from osrm_exp.spec import Cell, cell_from

log = logging.getLogger("osrm_exp")
SENTENCES = (ValueError, OSError, HydraException, OmegaConfBaseException)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(config: DictConfig) -> None:
    """Runs one cell unless its rows exist, and leaves word of how it went."""
    outcome, start = "failed", time.perf_counter()
    status = {"overrides": list(HydraConfig.get().overrides.task)}
    try:
        plain = OmegaConf.to_container(config, resolve=True)
        cell = cell_from(plain)
        title = f"{cell.names['init']} / {cell.names['merge']} / seed {cell.seed}"
        if rows_file(plain["paths"]["results"], cell.digest).is_file():
            outcome = "skipped"
            log.info("%s: done before, skipped", title)
            return
        write_rows(plain["paths"]["results"], cell.digest, _run(cell, plain))
        outcome = "finished"
        log.info("%s: finished in %.0f s", title, time.perf_counter() - start)
    except SENTENCES as error:
        status["reason"] = _sentence(error)
        log.error("%s", status["reason"])
        raise
    finally:
        folder = Path(HydraConfig.get().runtime.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "status.json").write_text(json.dumps({"outcome": outcome, **status}))


def _run(cell: Cell, config: dict) -> list[dict]:
    from osrm_exp import pipeline  # imports torch: not before there is something to do
    from osrm_exp.artifacts import Workshop
    from osrm_exp.loggers import open_logger
    from osrm_exp.store import Store

    with open_logger(config["logger"], cell, config) as logger:
        workshop = Workshop(Store(config["paths"]["store"]), dict(config["trainer"]), logger)
        rows = pipeline.run(cell, workshop)
        if logger:
            headline = {f"merged/{r['task']}": r["value"] for r in rows if r["headline"]}
            headline["merged/average"] = sum(headline.values()) / len(headline)
            logger.log_metrics(headline)
    return rows


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main() -> None:
    """Runs Hydra; what a user can mend is told in one sentence, all else with its trace."""
    wants_trace = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise to us instead of printing frames
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        job()
    except SENTENCES as error:
        if wants_trace:
            raise
        print(f"osrm_exp: {_sentence(error)}", file=sys.stderr)
        print("(HYDRA_FULL_ERROR=1 shows the trace)", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nosrm_exp: interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
