"""Studies, as `status` sees them; other sweeps are in `test_status.py`."""

import shlex
import sqlite3

from omegaconf import OmegaConf

from osrm_exp import status
from osrm_exp.report.rows import write_rows
from osrm_exp.sweeps import note_study, sweeps

WORDS = ["+experiment=quickstart", "+hparams_search=scaling", "hydra.sweeper.n_trials=4"]


def begun(logs, results, values):
    """What Hydra leaves of a study's trials."""
    sweeper = {"n_trials": 2, "study_name": "study-1", "storage": f"sqlite:///{results}/study.db"}
    config = {"paths": {"results": str(results)}, "hydra": {"sweeper": sweeper}}
    (logs / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(config), logs / "multirun.yaml")
    for number, value in enumerate(values):
        (logs / str(number) / ".hydra").mkdir(parents=True)
        cell = [*WORDS[:2], f"merge.scaling={value}"]
        OmegaConf.save(OmegaConf.create(cell), logs / str(number) / ".hydra" / "overrides.yaml")


def database(results, complete):
    with sqlite3.connect(results / "study.db") as known:
        known.execute("create table studies (study_id, study_name)")
        known.execute("create table trials (study_id, state)")
        known.executemany("insert into studies values (?, ?)", [(1, "study-1"), (2, "study-2")])
        rows = [(1, "COMPLETE")] * complete + [(1, "RUNNING"), (2, "COMPLETE")]
        known.executemany("insert into trials values (?, ?)", rows)


def test_a_study_is_told_with_its_own_command_and_what_it_has_begun(tmp_path, monkeypatch):
    logs, results = tmp_path / "logs", tmp_path / "results"
    note_study(results, "study-1", WORDS, 4)
    begun(logs / "1", results, [0.1, 0.2])
    begun(logs / "2", results, [0.2, 0.3])
    database(results, 2)
    monkeypatch.setattr(status, "_done_otherwise", lambda *_: False)
    for value in (0.1, 0.2):
        row = {"overrides": [WORDS[0], f"merge.scaling={value}"], "seconds": 60.0, "schema": 2}
        write_rows(results, f"{value}", [{"cell": f"{value}", **row}])
    (one,) = sweeps(logs, results)
    assert [cell[-1] for cell in one.cells] == [f"merge.scaling=0.{i}" for i in (1, 2, 3)]
    lines = status.report(results, logs).splitlines()
    assert lines[0] == f"{results}: 3 cells: 2 ok, 1 missing"
    assert lines[1] == "  study-1: 2 of 4 trials are complete"
    assert "about 2 min: 2 cells one after the other" in lines[-3]
    assert shlex.split(lines[-1]) == ["python", "-m", "osrm_exp", *WORDS, "-m"]


def test_a_complete_study_has_nothing_left_whatever_failed(tmp_path, monkeypatch):
    logs, results = tmp_path / "logs", tmp_path / "results"
    note_study(results, "study-1", WORDS, 4)
    begun(logs / "1", results, [0.1])
    database(results, 4)
    assert status.report(results, logs).splitlines() == [
        f"{results}: 1 cells: 1 missing", "  study-1: 4 of 4 trials are complete",
    ]  # fmt: skip
