"""Sweeps on other people's schedulers, for real: a Slurm of one node and a Ray of two workers, both
started here."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import slurm
from safetensors.torch import load_file

from osrm_exp.report.rows import read_rows

TINY = [
    "dataset=glue", "dataset.only=[cola,sst2]", "tuning.batch_size=16", "tuning.max_length=32",
    "tuning.lora.r=2", "protocol.holdout=0.2", "model=roberta_large", "merge=average,ties",
]  # fmt: skip
PATIENCE = 900  # of a machine that has much else to do


@pytest.fixture
def command(checkpoints, suite, tmp_path):
    """`command(folder)`: a sweep of two cells into a folder."""

    def line(folder):
        paths = [f"model.path={checkpoints['roberta']}", f"dataset.path={suite}"]
        paths += [f"paths.{k}={tmp_path / folder / k}" for k in ("store", "results", "logs")]
        return [sys.executable, "-m", "osrm_exp", *TINY, *paths, "-m"]

    return line


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    pytest.importorskip("submitit", reason='pip install "osrm-exp[slurm]"')
    if why := slurm.missing():
        pytest.skip(why)
    with slurm.running(tmp_path_factory.mktemp("slurm")) as environment:
        yield {k: v for k, v in environment.items() if not k.startswith("WANDB")}


@pytest.fixture(scope="module")
def ray():
    pytest.importorskip("ray", reason='pip install "osrm-exp[ray]"')
    return {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}


def run(line, environment):
    return subprocess.run(
        line, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )  # fmt: skip


def until(found, what):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError(f"waited for {what}")


def weights(folder):
    """All tensors of a store's adapters, by task."""
    return {
        file.parent.name.partition("-")[0]: load_file(file)
        for file in folder.glob("store/FineTune/[!.]*/adapter_model.safetensors")
    }


def equal(one, two):
    return one.keys() == two.keys() and all(
        a.keys() == two[task].keys() and all(a[k].equal(two[task][k]) for k in a)
        for task, a in one.items()
    )


def job_of(folder):
    """The number of the first job of an array, as Slurm writes it."""
    log = next(folder.glob("logs/*/.submitit/*/*_0_log.out"))
    return log.name.removesuffix("_0_log.out")


@contextmanager
def waiting(words, environment):
    """A command that waits for its jobs, and not for a test that failed."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, env=environment, text=True, **pipes) as parent:
        try:
            yield parent
        finally:
            parent.kill()


SLURM = [
    "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.timeout_min=60",
]  # fmt: skip


def test_an_array_of_cells_each_on_two_ranks(command, cluster, tmp_path):
    ranks = ["trainer=ddp", "trainer.accelerator=cpu", "tuning.dropout=0", "tuning.epochs=2"]
    swept = run([*command("a"), *SLURM, *ranks, "logger=wandb"], cluster)
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert "2 cells: 2 finished, 0 skipped, 0 failed" in swept.stdout
    logs = list(tmp_path.glob("a/logs/*/.submitit/*/*_0_log.out"))
    array = {re.match(r"(\d+)_\d+_0_log", log.name)[1] for log in logs}
    assert len(logs) == 2 and len(array) == 1  # two tasks of one array
    assert sum(log.read_text().count(": built in") for log in logs) == 2
    assert len(list(tmp_path.glob("a/logs/wandb/wandb/offline-run-*"))) == 2  # of rank 0
    assert set(read_rows(tmp_path / "a" / "results")["merge"]) == {"average", "ties"}


@pytest.mark.parametrize("how", ["signal", "requeue"])
def test_a_preempted_cell_is_requeued_and_goes_on(command, cluster, tmp_path, how):
    slow = ["dataset.only=cola", "merge=average", "tuning.epochs=80"]
    with waiting([*command("a"), *SLURM, *slow, "logger=wandb"], cluster) as parent:
        until(lambda: list(tmp_path.glob("a/store/FineTune/.*/resume/last.ckpt")), "an epoch")
        job = job_of(tmp_path / "a")
        word = ["scancel", "--signal=USR2"] if how == "signal" else ["scontrol", "requeue"]
        subprocess.run([*word, job], env=cluster, check=True)
        until(lambda: requeued(job, cluster), "the requeue")
        assert not list(tmp_path.glob("a/results/rows/*"))
        subprocess.run(
            ["scontrol", "update", f"JobId={job}", "StartTime=now"], env=cluster, check=True
        )
        out, errors = parent.communicate(timeout=PATIENCE)
    assert parent.returncode == 0, out + errors
    assert "1 cells: 1 finished, 0 skipped, 0 failed" in out
    (log,) = tmp_path.glob("a/logs/*/.submitit/*/*_0_log.out")
    assert log.read_text().count("Starting with") == 2  # two attempts
    runs = [p.name for p in tmp_path.glob("a/logs/wandb/wandb/offline-run-*")]
    assert len(runs) == 2 and len({name.rpartition("-")[2] for name in runs}) == 1
    calm = run([*command("calm"), *slow], os.environ)
    assert calm.returncode == 0, calm.stderr
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "calm"))


def requeued(job, environment):
    """Whether a job waits for its second attempt."""
    said = run(["scontrol", "show", "job", job], environment).stdout
    return "Restarts=1" in said and "JobState=PENDING" in said


def test_a_job_that_is_cancelled_is_one_sentence(command, cluster, tmp_path):
    slow = ["dataset.only=cola", "merge=average", "tuning.epochs=5000"]
    with waiting([*command("a"), *SLURM, *slow], cluster) as parent:
        until(lambda: list(tmp_path.glob("a/store/FineTune/.*.scratch")), "a fine-tuning")
        job = job_of(tmp_path / "a")
        subprocess.run(["scancel", job], env=cluster, check=True)
        _, errors = parent.communicate(timeout=PATIENCE)
    assert parent.returncode == 1 and "Traceback" not in errors
    assert "the same command continues" in errors and len(errors.splitlines()) <= 4


RAY = ["hydra/launcher=ray_cluster", "+hydra.launcher.ray.init.num_cpus=2"]


def test_ray_runs_two_cells_at_once_and_a_killed_worker_is_replaced(command, ray, tmp_path):
    with waiting([*command("a"), *RAY, "tuning.epochs=30"], ray) as parent:
        until(lambda: list(tmp_path.glob("a/store/FineTune/.*/resume/last.ckpt")), "an epoch")
        os.kill(holder(tmp_path / "a"), signal.SIGKILL)
        out, errors = parent.communicate(timeout=PATIENCE)
    assert parent.returncode == 0, out + errors
    assert "2 cells: 2 finished, 0 skipped, 0 failed" in out
    calm = run([*command("calm"), "tuning.epochs=30"], os.environ)
    assert calm.returncode == 0, calm.stderr
    assert len(weights(tmp_path / "a")) == 2
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "calm"))


def holder(folder):
    """The process that builds an adapter."""
    held = next(folder.glob("store/FineTune/.*.held"))
    return int(re.search(r'"pid": (\d+)', held.read_text())[1])


def test_ray_leaves_nobody_behind(command, ray, tmp_path):
    with waiting([*command("a"), *RAY, "tuning.epochs=5000"], ray) as parent:
        until(lambda: list(tmp_path.glob("a/store/FineTune/.*.held")), "a fine-tuning")
        worker = holder(tmp_path / "a")
        parent.send_signal(signal.SIGTERM)
        _, errors = parent.communicate(timeout=PATIENCE)
    assert parent.returncode == 143 and "terminated; the same command continues" in errors
    until(lambda: not Path("/proc", str(worker)).exists(), "the worker's end")


@pytest.mark.parametrize(
    ("launcher", "plugin"),
    [("slurm", "hydra-submitit-launcher"), ("ray_cluster", "hydra-ray-launcher")],
)
def test_a_launcher_that_is_not_installed_says_how_it_is(command, launcher, plugin, tmp_path):
    (tmp_path / "hydra_plugins").mkdir()  # a package without the plugins, found before the real one
    (tmp_path / "hydra_plugins" / "__init__.py").touch()
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    answer = run([*command("a"), f"hydra/launcher={launcher}"], {**os.environ, "PYTHONPATH": path})
    assert answer.returncode == 1 and answer.stderr.count("\n") == 1
    assert f"is not installed: pip install {plugin}" in answer.stderr
