import json
import os
import sys
import time
from errno import ENOSPC

import pytest
from omegaconf import OmegaConf

from osrm_exp import job as entry
from osrm_exp.report.callback import Report, progress
from osrm_exp.report.rows import rows_file, write_rows
from osrm_exp.status import RUN


@pytest.fixture
def finish(tmp_path):
    """Runs the callback on cells with these outcomes, as Hydra does at a sweep's end."""

    def done(*outcomes):
        for number, (outcome, *overrides) in enumerate(outcomes):
            folder = tmp_path / "logs" / str(number)
            folder.mkdir(parents=True)
            status = {"outcome": outcome, "overrides": overrides, "reason": "no such metric"}
            status |= {"run": "another" if "another" in overrides else os.environ.get(RUN)}
            (folder / "status.json").write_text(json.dumps(status))
        paths = {"results": str(tmp_path), "store": "artifacts"}
        hydra = {"sweep": {"dir": str(tmp_path / "logs")}}
        Report().on_multirun_end(OmegaConf.create({"note": None, "paths": paths, "hydra": hydra}))

    yield done
    Report.failed = 0


def test_a_sweep_that_ends_well_shows_its_table(tmp_path, finish, row, capsys):
    write_rows(tmp_path, "c", [row()])
    finish(("finished", "merge=ties"), ("skipped", "merge=dare"))
    out = capsys.readouterr().out
    assert "2 cells: 1 finished, 1 skipped, 0 failed" in out and "50.0" in out
    assert Report.failed == 0 and (tmp_path / "table.md").is_file()


def test_a_failed_cell_is_told_by_what_is_its_own(tmp_path, finish, row, capsys):
    write_rows(tmp_path, "c", [row()])
    finish(("failed", "+experiment=x", "merge=ties"), ("finished", "+experiment=x", "merge=dare"))
    assert "  failed: merge=ties: no such metric" in capsys.readouterr().out
    assert Report.failed == 1


def test_a_sweep_in_the_same_folder_counts_its_own_cells(tmp_path, finish, row, capsys):
    """As two that were started in the same second, or were given one folder."""
    write_rows(tmp_path, "c", [row()])
    finish(("finished", "merge=ties"), ("failed", "another"), ("running", "another"))
    out = capsys.readouterr().out
    assert "1 cells: 1 finished, 0 skipped, 0 failed\n" in out and Report.failed == 0


def test_two_commands_of_one_second_have_names_of_their_own(monkeypatch):
    monkeypatch.setattr(entry, "_hydra", lambda: None)
    monkeypatch.setattr(entry.time, "strftime", lambda *_: "2026-01-01_00-00-00")
    monkeypatch.setattr(sys, "argv", ["osrm_exp"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    names = set()
    for _ in range(3):
        monkeypatch.delenv(RUN, raising=False)
        with pytest.raises(SystemExit):
            entry.main()
        names.add(os.environ[RUN])
    assert len(names) == 3


def test_a_table_that_finds_no_room_leaves_the_former_one_whole(tmp_path, finish, row, capsys):
    write_rows(tmp_path, "c", [row()])
    finish(("finished", "merge=ties"))
    before = {file: (tmp_path / file).read_text() for file in ("table.md", "table.csv")}
    write_rows(tmp_path, "d", [row("dare", line="l2")])

    def full(self, text):
        with self.open("w") as out:
            out.write(text[:10])
        raise OSError(ENOSPC, os.strerror(ENOSPC), str(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tmp_path), "write_text", full)
        Report().on_run_end(
            OmegaConf.create({
                "note": None, "paths": {"results": str(tmp_path), "store": "artifacts"},
                "hydra": {"run": {"dir": str(tmp_path / "logs" / "0")}},
            })
        )  # fmt: skip
    said = capsys.readouterr().out
    assert "no tables: [Errno 28] No space left" in said and "1 cells: 1 finished" in said
    assert Report.failed == 1 and not list(tmp_path.glob("*.tmp"))
    assert before == {file: (tmp_path / file).read_text() for file in before}


def test_a_report_that_cannot_be_made_is_a_failure(tmp_path, finish, row, capsys):
    write_rows(tmp_path, "c", [row()])
    rows_file(tmp_path, "c").write_text("{")
    finish(("finished", "merge=ties"))
    out = capsys.readouterr().out
    assert "no tables: " in out and "c.jsonl is damaged" in out and "1 cells" in out
    assert Report.failed == 1


def test_a_sweep_without_any_rows_is_a_failure(finish, capsys):
    finish(("failed", "merge=ties"))
    assert "holds no rows yet" in capsys.readouterr().out and Report.failed == 2


def test_an_unforeseen_error_is_a_failure_too(tmp_path, finish, row, capsys):
    write_rows(tmp_path, "c", [{"headline": True}])
    finish(("finished", "merge=ties"))
    assert "1 cells: 1 finished" in capsys.readouterr().out and Report.failed == 1


def test_cells_that_left_nothing_are_lost(tmp_path, finish, row, capsys, monkeypatch):
    write_rows(tmp_path, "c", [row()])
    monkeypatch.setattr(Report, "cells", [("merge=ties",), ("merge=dare",), ("merge=pcb",)])
    finish(("finished", "merge=ties"), ("running", "merge=dare"))
    assert "3 cells: 1 finished, 0 skipped, 0 failed, 2 lost" in capsys.readouterr().out
    assert Report.failed == 2


def test_how_far_a_sweep_is():
    begun = time.time() - 60
    assert progress(["finished", "skipped", "failed", "running"], 15, begun) == (
        "3 of 15, about 6 minutes left"
    )
    assert progress(["skipped"], 2, begun) == "1 of 2"
    assert progress(["finished", "finished"], 2, begun) == "2 of 2"
