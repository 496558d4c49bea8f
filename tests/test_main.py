"""The command line itself: sweep, resume, skip, kill, and what a user reads when it goes wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from osrm_exp import CONF
from osrm_exp.overrides import public
from osrm_exp.report.rows import read_rows


def run(command, *overrides, **options):
    return subprocess.run(
        [*command, *overrides], capture_output=True, text=True, timeout=300, **options
    )


def wait_for(folder, pattern):
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_sweep_is_run_once_and_then_skipped(command, tmp_path):
    sweep = ("merge=ties,individual", "search=scored", "init=gaussian", "logger=tensorboard", "-m")
    first = run(command, *sweep)
    assert first.returncode == 0, first.stderr
    assert "2 finished, 0 skipped, 0 failed" in first.stdout
    assert first.stdout.strip().splitlines()[-1].startswith("tables: ")
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))
    check_rows(read_rows(tmp_path / "results"))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "results" / "rows").iterdir()}
    second = run(command, *sweep)
    assert "0 finished, 2 skipped, 0 failed" in second.stdout
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "results" / "rows").iterdir()}


def check_rows(rows):
    """They say all that a table needs, in what JSON can hold."""
    named = """experiment model dataset tuning init merge space settings protocol tuned_on seed task
    split metric value headline degenerate output adapters versions seconds"""
    assert set(named.split()) <= set(rows.columns)
    assert rows.groupby(["merge", "task"]).headline.sum().tolist() == [1, 1, 1, 1]
    json.dumps(rows.to_dict("records"))


def test_cells_side_by_side_build_what_all_need_once_and_find_own_configs(command, tmp_path):
    (tmp_path / "own" / "merge").mkdir(parents=True)
    text = (CONF / "merge" / "average.yaml").read_text()
    (tmp_path / "own" / "merge" / "mine.yaml").write_text(text)
    own = ("--config-dir", str(tmp_path / "own"))
    side_by_side = ("hydra/launcher=parallel", "merge=mine,ties,individual,pretrained", "-m")
    swept = run(command, *own, *side_by_side)
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert "4 finished, 0 skipped, 0 failed" in swept.stdout
    assert len(list(tmp_path.glob("store/FineTune/[!.]*"))) == 2
    assert (swept.stdout + swept.stderr).count(": built in") == 2
    alone = run(command, "merge=average", f"paths.results={tmp_path / 'alone'}",
                f"paths.store={tmp_path / 'other'}")  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    one, two = (read_rows(tmp_path / folder) for folder in ("alone", "results"))
    two = two[two["merge"] == "mine"]
    assert one.value.tolist() == pytest.approx(two.value.tolist(), abs=1e-6)
    assert two.conf.tolist() == [[public(own[1])]] * len(two)


def test_a_killed_run_is_finished_by_the_same_command(command, tmp_path):
    slow = (*command, "merge=average", "tuning.epochs=30")
    process = subprocess.Popen(slow, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    adapters = tmp_path / "store" / "FineTune"
    wait_for(adapters, "[!.]*")
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = list(adapters.glob("[!.]*"))
    assert len(done) == 1 and not (tmp_path / "results" / "rows").exists()
    made = done[0].stat().st_mtime_ns
    again = run(slow)
    assert again.returncode == 0, again.stderr
    assert done[0].stat().st_mtime_ns == made
    assert len(list(adapters.glob("[!.]*"))) == 2 and not list(adapters.glob(".*.scratch"))
    assert set(read_rows(tmp_path / "results").task) == {"cola", "sst2"}


def test_a_signal_is_one_sentence_and_leaves_nothing_half_done(command, tmp_path):
    process = subprocess.Popen(
        [*command, "merge=average", "tuning.epochs=2000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(tmp_path, "store/FineTune/.*.scratch")
    time.sleep(3)
    process.send_signal(signal.SIGINT)  # SIGTERM ends the sweep below
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.endswith("ed; the same command continues\n") and "Traceback" not in errors
    left = list(tmp_path.glob("store/FineTune/.*.scratch/*"))
    assert {path.name for path in left} <= {"resume"}  # from which the same command goes on
    assert not list(tmp_path.glob("results/rows/*"))


PROC = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds workers in /proc")


def children_of(process) -> dict[str, str]:
    """Commands of its child processes, by their numbers."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return {child: Path(f"/proc/{child}/cmdline").read_text() for child in children}


@PROC
def test_a_terminated_sweep_leaves_no_worker_behind(command, tmp_path):
    sweep = (*command, "hydra/launcher=parallel", "merge=average,ties", "tuning.epochs=2000", "-m")
    process = subprocess.Popen(sweep, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path, "store/FineTune/.*.scratch")
    workers = children_of(process)
    assert len(workers) > 1
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "terminated; the same command continues" in errors and "Traceback" not in errors
    deadline = time.monotonic() + 20
    while (left := [w for w in workers if Path("/proc", w).exists()]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.2)
    assert not left


@PROC
def test_a_killed_worker_is_one_sentence_and_the_same_command_continues(command, tmp_path):
    sweep = (*command, "hydra/launcher=parallel", "merge=average,ties", "tuning.epochs=5", "-m")
    process = subprocess.Popen(sweep, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path, "store/FineTune/.*.scratch")
    worker = next(child for child, name in children_of(process).items() if "popen_loky" in name)
    os.kill(int(worker), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in errors
    assert "a worker process was killed" in errors and "the same command continues" in errors
    again = [word for word in sweep if "launcher" not in word]  # in any way of starting it
    assert "2 finished, 0 skipped, 0 failed" in run(again).stdout


@pytest.mark.parametrize("what", ["results", "logs"])
def test_a_sweep_that_loses_everything_says_so(command, tmp_path, what):
    if what == "results":
        (tmp_path / what).write_text("a file, where nobody can write into")
    else:
        (tmp_path / what).symlink_to(tmp_path / what)  # nor into itself
    swept = run(command, "merge=average,ties", "-m")
    assert swept.returncode == 1 and "Traceback" not in swept.stdout + swept.stderr
    if what == "results":
        assert "2 cells: 0 finished, 0 skipped, 2 failed" in swept.stdout
        assert "paths.results=DIR takes another folder" in swept.stdout
    else:
        assert "paths.logs=DIR takes another folder for the logs" in swept.stderr
    assert not list(tmp_path.glob("store/FineTune/[!.]*"))  # seen before the work


def test_the_cell_that_lacks_a_key_is_named(command):
    swept = run(command, "merge=individual,ties", "merge.scaling=0.3,0.6", "-m")
    assert swept.returncode == 1
    assert "the cell merge=individual merge.scaling=0.3: Could not override" in swept.stderr


def test_one_failed_cell_hides_no_other(command, tmp_path):
    swept = run(command, "merge=average", "tuning.lora.r=64,2", "-m")
    assert swept.returncode == 1
    assert "1 finished, 0 skipped, 1 failed" in swept.stdout
    assert "tuning.lora.r=64 is above the width" in swept.stdout
    assert "1 of 2" in swept.stdout and "2 of 2\n" in swept.stdout
    assert len(list((tmp_path / "results" / "rows").iterdir())) == 1


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("merge.lambda=1", "Could not override 'merge.lambda'"),
        ("dataset.only={cola:1}", "dataset.only={cola:1}: Cannot merge DictConfig with ListConfig"),
        ("merge=tise", "Could not find 'merge/tise'"),
        ("tuning.lr=fast", "tuning.lr"),
        ("model.path=/nowhere/at/all", "model.path=/nowhere/at/all is not a folder"),
    ],
)
def test_a_typing_error_is_answered_in_one_sentence(command, override, sentence):
    answer = run(command, override)
    assert answer.returncode == 1
    said = answer.stdout + answer.stderr
    assert sentence in said and "Traceback" not in said
    assert len(answer.stderr.splitlines()) <= 4


def test_a_hub_out_of_reach_names_what_was_tried_and_what_helps(command):
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"}
    for option in ("model.path=FacebookAI/roberta-large", "dataset.path=nyu-mll/glue"):
        answer = run(command, option, env=offline)
        assert answer.returncode == 1
        said = answer.stdout + answer.stderr
        assert "model.path=DIR" in said and "dataset.path=DIR" in said
        assert option.split("=")[1] in said and "Traceback" not in said


def test_merge_is_a_command_of_its_own(tmp_path):
    answer = run([sys.executable, "-m", "osrm_exp"], "merge", "tise", "a", str(tmp_path / "out"))
    assert answer.returncode == 1
    assert answer.stderr.startswith("osrm_exp: there is no merge 'tise'")


def test_wandb_gets_one_finished_run_a_cell_without_an_account(command, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    swept = run(command, "logger=wandb", "merge=average,pretrained", "-m", env=environment)
    assert swept.returncode == 0, swept.stdout + swept.stderr
    runs = list((tmp_path / "logs" / "wandb").glob("wandb/offline-run-*"))
    assert len(runs) == 2
    sent = [file for run in runs for file in (*run.glob("*.wandb"), *run.glob("files/**/*"))]
    sent = [file for file in sent if file.is_file()]
    assert sent and not any(b"/pytest-" in file.read_bytes() for file in sent)
