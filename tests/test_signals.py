"""Real processes and real signals."""

import os
import signal
import subprocess
import sys
import time

import pytest

HEAD = """
import os, sys, time
from pathlib import Path
from osrm_exp import signals
"""
WAITS = "with signals.one_sentence():\n    print('ready', flush=True)\n    "
CODES = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]


@pytest.fixture
def program():
    """`program(text)`: a running program that has said that it is ready."""
    started = []

    def start(text):
        process = subprocess.Popen(
            [sys.executable, "-c", HEAD + text], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code", "word"), CODES)
@pytest.mark.parametrize(
    "body",
    [
        "time.sleep(60)",
        "try: time.sleep(60)\n    except BaseException: sys.exit(1)",  # as Lightning does
        "try: time.sleep(60)\n    except BaseException: raise RuntimeError('a worker is gone')",
        "try: time.sleep(60)\n    except BaseException: pass",
        "try: time.sleep(60)\n    finally: time.sleep(1)",
    ],
    ids=["plain", "exits", "wrapped", "swallowed", "unwinds"],
)
def test_a_signal_is_one_sentence_and_a_code(program, body, number, code, word):
    process = program(WAITS + body)
    process.send_signal(number)
    time.sleep(0.2)
    process.send_signal(number)  # a second one does not disturb the end
    out, errors = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "")
    assert errors == f"\nosrm_exp: {word}; the same command continues\n"


@pytest.mark.parametrize(("number", "code", "word"), CODES)
def test_a_signal_is_heard_while_the_libraries_are_loaded(tmp_path, number, code, word):
    (tmp_path / "hydra.py").write_text("import time; print('ready', flush=True); time.sleep(60)")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-m", "osrm_exp"], env={**os.environ, "PYTHONPATH": path}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=30)[1].startswith(f"\nosrm_exp: {word}; the same")
    assert process.returncode == code


def test_what_was_swallowed_is_noticed_before_the_next_cell(program):
    body = (
        "try: time.sleep(60)\n    except BaseException: pass\n    signals.check()\n    print('on')"
    )
    process = program(WAITS + body)
    process.terminate()
    assert process.communicate(timeout=30)[0] == "" and process.returncode == 143


def test_other_ends_are_left_alone(program):
    process = program(WAITS + "raise SystemExit('some reason')")
    assert process.communicate(timeout=30)[1] == "some reason\n" and process.returncode == 1
    process = program(WAITS + "signals.check()")
    assert process.communicate(timeout=30)[1] == "" and process.returncode == 0


def test_who_does_not_unwind_is_cut_off(program):
    ready = "signals.PATIENCE = 0.5\n    try: print('ready', flush=True); time.sleep(60)\n"
    process = program(WAITS.partition("print")[0] + ready + "    finally: time.sleep(60)")
    process.terminate()
    assert "did not end within" in process.communicate(timeout=30)[1]
    assert process.returncode == 143


SWEEP = """
def job(folder):
    signals.listen()
    (folder / str(os.getpid())).touch()
    try:
        time.sleep(60)
    finally:
        (folder / f'{os.getpid()}.unwound').touch()

if __name__ == '__main__':
    from joblib import Parallel, delayed
    print('ready', flush=True)
    with signals.one_sentence():
        Parallel(n_jobs=2)(delayed(job)(Path(sys.argv[1])) for _ in range(4))
"""


@pytest.fixture
def sweep(tmp_path):
    """A program that waits for two workers, and their process ids."""
    script, at_work = tmp_path / "sweep.py", tmp_path / "at_work"
    script.write_text(HEAD + SWEEP)
    at_work.mkdir()
    process = subprocess.Popen(
        [sys.executable, script, at_work], text=True, stderr=subprocess.PIPE
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(list(at_work.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [int(p.name) for p in at_work.iterdir()]
    assert len(workers) == 2
    yield process, workers
    process.kill()
    process.communicate()


def gone_within(seconds, processes):
    deadline = time.monotonic() + seconds
    while any(os.path.exists(f"/proc/{pid}") for pid in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(("number", "code", "word"), CODES)
def test_a_waiting_parent_ends_and_takes_its_workers_along(sweep, number, code, word):
    parent, workers = sweep
    parent.send_signal(number)
    _, errors = parent.communicate(timeout=30)
    assert parent.returncode == code
    assert errors.endswith(f"\nosrm_exp: {word}; the same command continues\n")
    assert "Traceback" not in errors
    assert gone_within(5, workers)


def test_workers_do_not_outlive_a_killed_parent(sweep, tmp_path):
    parent, workers = sweep
    parent.kill()
    parent.wait()
    assert gone_within(15, workers)
    assert all((tmp_path / "at_work" / f"{pid}.unwound").exists() for pid in workers)


FORKED = """
import multiprocessing

def worker():
    signals.listen()
    print(os.getpid(), flush=True)
    time.sleep(60)

with signals.one_sentence():
    print('ready', flush=True)
    child = multiprocessing.get_context('fork').Process(target=worker)
    child.start()
    child.join()
"""


def test_a_forked_worker_does_not_outlive_a_killed_parent_whose_handlers_it_has(program):
    parent = program(FORKED)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    assert gone_within(20, [worker])


def test_a_worker_that_is_terminated_ends_the_sweep(sweep):
    parent, workers = sweep
    os.kill(workers[0], signal.SIGTERM)
    _, errors = parent.communicate(timeout=30)
    assert parent.returncode == 143 and "osrm_exp: terminated" in errors
    assert gone_within(5, workers)


@pytest.mark.parametrize("told", [True, False])
def test_what_fails_in_a_job_that_was_told_to_end_waits_for_its_end(program, told):
    job = """
def submitit(*_): print('passed on', flush=True)
os.environ['SUBMITIT_EXECUTOR'] = 'slurm'
signals.signal.signal(signals.signal.SIGTERM, submitit)
signals.GRACE = 3600
signals.listen(), signals.listen()
print('ready', flush=True)
sys.stdin.readline()
signals.outlast()
print('failed', flush=True)
"""
    process = program(job)
    if told:
        process.terminate()
        assert process.stdout.readline() == "passed on\n"
    process.stdin.write("\n")
    process.stdin.flush()
    try:
        out, _ = process.communicate(timeout=4 if told else 60)
    except subprocess.TimeoutExpired:
        assert told and process.poll() is None
    else:
        assert not told and out == "failed\n"
