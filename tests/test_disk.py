"""A whole sweep on disks that are full or read-only: a summary and an exit code, whatever fails."""

import subprocess

import pytest

MOUNT = 'mount -t tmpfs -o "$1" none "$2" && shift 2 && exec "$@"'
INSIDE = ["unshare", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh"]


def on(disk, folder, *command):
    """The command, with a disk of its own at a folder that nobody else sees."""
    folder.mkdir(exist_ok=True)
    line = [*INSIDE, disk, str(folder), *command]
    return subprocess.run(line, capture_output=True, text=True, timeout=300)


@pytest.fixture
def sweep(command, tmp_path):
    try:
        allowed = on("size=64k", tmp_path / "probe", "true").returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("no mounts in a namespace of one's own here")
    return [*command, "merge=average,individual", "-m"]


def failed(swept):
    said = swept.stdout + swept.stderr
    assert swept.returncode == 1 and "Traceback" not in said and "Hydra" not in said, said
    return said


def test_results_that_take_nothing_are_seen_before_the_work(sweep, tmp_path):
    said = failed(on("ro", tmp_path / "results", *sweep))
    assert "2 cells: 0 finished, 0 skipped, 2 failed" in said
    assert "paths.results=DIR takes another folder, and the same command continues" in said
    assert not list(tmp_path.glob("store/FineTune/[!.]*"))


def test_results_that_fill_up_while_the_sweep_runs(sweep, tmp_path):
    """The first cell's rows have room, the second cell finds too little."""
    said = failed(on("size=72k", tmp_path / "results", *sweep))
    assert "2 cells: 1 finished, 0 skipped, 1 failed" in said
    assert "failed: merge=individual: the results in " in said and "No space left" in said


def test_logs_that_fill_up_while_the_sweep_runs(sweep, tmp_path):
    said = failed(on("size=40k", tmp_path / "logs", *sweep))
    assert "2 cells: " in said and "No space left" in said
    assert "osrm_exp: " in said and "paths.logs=DIR takes another folder for the logs" in said


def test_a_store_that_fills_up(sweep, tmp_path):
    said = failed(on("size=48k", tmp_path / "store", *sweep))
    assert "2 cells: 0 finished, 0 skipped, 2 failed" in said and "has no space left" in said
    assert "no tables: " in said
