import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from osrm_exp import status
from osrm_exp.compose import cell_from, configuration, sweep
from osrm_exp.report.rows import write_rows

GIVEN = ["dataset=glue", "dataset.only=[cola,sst2]", "merge=average,ties,individual", "seed=1,2"]


@pytest.fixture
def swept(tmp_path, checkpoints, suite):
    """The overrides of a sweep of six cells, its results and its logs as Hydra leaves them."""
    results, logs = tmp_path / "results", tmp_path / "logs"
    where = [f"paths.results={results}", f"paths.logs={logs}", f"dataset.path={suite}"]
    task = [*GIVEN, "model=roberta_large", f"model.path={checkpoints['roberta']}", *where]
    config = {"paths": {"results": str(results)}}
    overrides = {"task": task, "hydra": ["hydra.mode=MULTIRUN", "hydra/launcher=parallel"]}
    (logs / "1").mkdir(parents=True)
    OmegaConf.save(
        OmegaConf.create({**config, "hydra": {"overrides": overrides}}),
        logs / "1" / "multirun.yaml",
    )
    return list(sweep(task)), results, logs


def done(cell, results, digest):
    write_rows(results, digest, [{"cell": digest, "overrides": list(cell), "seconds": 120.0,
                                  "schema": 2}])  # fmt: skip


def run(folder, cell, started):
    with status.told(folder, cell):
        started.set()
        time.sleep(60)


def test_a_second_attempt_runs_whatever_machine_the_first_one_died_on(tmp_path):
    held = tmp_path / "status.held"
    held.write_text(json.dumps({"pid": 1, "host": "node7", "machine": "another", "since": 0.0}))
    os.utime(held, (0, 0))
    with status.told(tmp_path, ["merge=ties"]):
        state, holder = status._of(tmp_path / "status.json")
        assert state == "running" and f"process {os.getpid()} on " in holder
    assert not held.exists()


def test_every_cell_has_a_state_and_the_command_for_the_rest_is_printed(swept):
    cells, results, logs = swept
    done(cells[0], results, "0" * 16)
    with status.told(logs / "1" / "1", cells[1]) as told:
        told |= {"outcome": "failed", "reason": "tuning.lr=0 is too small"}
    with pytest.raises(KeyboardInterrupt), status.told(logs / "1" / "2", cells[2]):
        raise KeyboardInterrupt
    context = multiprocessing.get_context("fork")
    jobs = []
    for index in (3, 4):
        started = context.Event()
        jobs.append(
            context.Process(target=run, args=(logs / "1" / str(index), cells[index], started))
        )
        jobs[-1].start()
        started.wait(30)
    jobs[1].kill()
    jobs[1].join()
    try:
        text = status.report(results, logs)
    finally:
        jobs[0].kill()
        jobs[0].join()
    lines = text.splitlines()
    assert lines[0] == f"{results}: 6 cells: 1 ok, 1 failed, 1 running, 2 interrupted, 1 missing"
    states = {line.split(":")[0].strip(): line for line in lines[1:6]}
    assert "failed      merge=average seed=2: tuning.lr=0 is too small" in lines[1]
    assert f"running     merge=ties seed=2: process {jobs[0].pid} on " in text
    assert f"by process {jobs[1].pid} on" in text and len(states) == 5
    assert lines[5].strip() == "missing     merge=individual seed=2"
    assert "about 10 min: 5 cells one after the other, 120 s each" in text
    words = shlex.split(lines[-1])
    assert words[:3] == ["python", "-m", "osrm_exp"] and words[-1] == "-m"
    assert "merge=average,ties,individual" in words and "hydra/launcher=parallel" in words


def test_rows_that_were_cut_short_are_not_done(swept):
    cells, results, logs = swept
    for index, cell in enumerate(cells):
        done(cell, results, f"{index:016x}")
    assert status.report(results, logs) == f"{results}: 6 cells: 6 ok"
    file = next((results / "rows").iterdir())
    file.write_text(file.read_text()[:-20])
    assert "6 cells: 5 ok, 1 missing" in status.report(results, logs)


def test_a_cell_that_another_spelling_made_is_done(swept):
    cells, results, logs = swept
    other = (*cells[0], "rank=null")
    done(other, results, cell_from(configuration(other)).digest)
    assert "6 cells: 1 ok, 5 missing" in status.report(results, logs)


def test_a_single_run_counts_too(swept):
    cells, results, logs = swept
    (logs / "1" / "multirun.yaml").unlink()
    (logs / "2" / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(list(cells[0])), logs / "2" / ".hydra" / "overrides.yaml")
    OmegaConf.save(
        OmegaConf.create({"paths": {"results": str(results)}}),
        logs / "2" / ".hydra" / "config.yaml",
    )
    text = status.report(results, logs)
    assert "1 cells: 1 missing" in text and not text.endswith(" -m")
    assert "nothing is known about the time" in text


def test_a_status_that_was_cut_short_says_nothing(swept):
    cells, results, logs = swept
    with status.told(logs / "1" / "0", cells[0]) as told:
        told["outcome"] = "failed"
    file = logs / "1" / "0" / "status.json"
    assert json.loads(file.read_text())["pid"] == os.getpid()
    file.write_text(file.read_text()[:20])
    assert "6 cells: 6 missing" in status.report(results, logs)


def test_a_wrong_folder_is_one_sentence(tmp_path):
    line = [sys.executable, "-m", "osrm_exp.status", str(tmp_path)]
    answer = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 1 and "Traceback" not in answer.stderr
    assert "name the logs (paths.logs)" in answer.stderr


def test_logs_lie_beside_results_at_any_depth():
    found = {str(status.logs_of(Path(one))) for one in ("results/x", "results/paper/x/tiny", "x")}
    assert found == {"outputs/x", "outputs/paper/x/tiny"}
    assert status.logs_of(Path("/a/results/x")) == Path("/a/outputs/x")
    assert status.logs_of(Path("my_results/x")) == Path("outputs/x")


def test_a_report_says_what_its_tables_lack(swept, monkeypatch):
    cells, results, logs = swept
    monkeypatch.setattr(status, "logs_of", lambda _: logs)
    with status.told(logs / "1" / "1", cells[1]) as told:
        told |= {"outcome": "failed", "reason": "tuning.lr=0 is too small"}
    for index in (0, 2, 3, 4):
        done(cells[index], results, f"{index:016x}")
    text = status.unfinished(results)
    assert "failed      merge=average seed=2: tuning.lr=0 is too small" in text
    assert "missing     merge=individual seed=2" in text and "4 ok, 1 failed, 1 missing" in text
    for index in (1, 5):
        done(cells[index], results, f"{index:016x}")
    assert status.unfinished(results) == "" == status.unfinished(results.parent)
