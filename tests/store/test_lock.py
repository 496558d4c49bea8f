import json
import multiprocessing
import os
import signal
import time

import pytest

from osrm_exp.store import lock
from osrm_exp.store.lock import Lock

fork = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.1)
    monkeypatch.setattr(lock, "LEASE", 1.0)


def hold(path, seconds, machine):
    lock.MACHINE = machine
    with Lock(path).held() as mine:
        path.with_name("taken" if mine else "refused").touch()
        time.sleep(seconds)


@pytest.fixture
def owner(tmp_path):
    """`owner(seconds, machine)`: a process that has the lock."""
    started = []

    def start(seconds=60.0, machine=lock.MACHINE):
        process = fork.Process(target=hold, args=(tmp_path / "held", seconds, machine))
        process.start()
        started.append(process)
        deadline = time.monotonic() + 20
        while not (tmp_path / "taken").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / "taken").exists()
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def taken(waiting, seconds):
    """After how many seconds a waiting process has the lock; None if it never has."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        with waiting.held() as mine:
            if mine:
                return time.monotonic() - start
        time.sleep(0.05)
    return None


def test_one_has_it_and_gives_it_back(tmp_path):
    one, two = Lock(tmp_path / "held"), Lock(tmp_path / "held")
    with one.held() as first:
        assert first and one.mine()
        with two.held() as second:
            assert not second and not two.mine()
        assert f"process {os.getpid()} on" in two.holder()
    assert list(tmp_path.iterdir()) == []
    with two.held() as second:
        assert second


@pytest.mark.parametrize("machine", [lock.MACHINE, "another"], ids=["here", "elsewhere"])
def test_a_living_owner_keeps_it_longer_than_a_lease(tmp_path, owner, machine):
    owner(machine=machine)
    assert taken(Lock(tmp_path / "held"), 2.5) is None and not Lock(tmp_path / "held").dead()


def test_a_dead_owner_on_this_machine_is_noticed_at_once(tmp_path, owner):
    process = owner()
    process.kill()
    process.join()
    assert Lock(tmp_path / "held").dead()
    assert taken(Lock(tmp_path / "held"), 0.5) is not None


def test_a_dead_owner_on_another_machine_is_noticed_after_a_lease(tmp_path, owner, caplog):
    process = owner(machine="another")
    process.kill()
    process.join()
    after = taken(Lock(tmp_path / "held"), 5)
    assert after and after >= 1.0
    assert f"taken over from process {process.pid} on " in caplog.text


def test_a_stopped_owner_on_this_machine_is_named_and_not_robbed(tmp_path, owner):
    process, waiting = owner(), Lock(tmp_path / "held")
    os.kill(process.pid, signal.SIGSTOP)
    assert taken(waiting, 2) is None
    assert f"process {process.pid} on " in waiting.holder()
    assert "it is stopped or hangs; continue or end it" in waiting.holder()
    os.kill(process.pid, signal.SIGCONT)
    process.kill()
    process.join()
    assert taken(waiting, 0.5) is not None


def test_a_stopped_owner_on_another_machine_learns_that_it_was_replaced(tmp_path):
    mine, theirs = Lock(tmp_path / "held"), Lock(tmp_path / "held")
    with mine.held():
        record = json.loads((tmp_path / "held").read_text())
        (tmp_path / "held").unlink()
        (tmp_path / "held").write_text(json.dumps({**record, "machine": "x", "token": "other"}))
        assert not mine.mine()
    assert (tmp_path / "held").exists() and "process" in theirs.holder()


def test_an_empty_lock_is_left_by_a_process_that_died_early(tmp_path):
    (tmp_path / "held").touch()
    waiting = Lock(tmp_path / "held")
    assert "just begun" in waiting.holder()
    assert (taken(waiting, 5) or 0) >= 1.0


def test_a_clock_that_jumps_robs_nobody(tmp_path, owner, monkeypatch):
    owner(machine="another")
    waiting, now = Lock(tmp_path / "held"), time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e6)
    assert taken(waiting, 0.5) is None
    monkeypatch.setattr(time, "time", lambda: now - 1e6)
    assert taken(waiting, 0.5) is None and " for 0 s" in waiting.holder()


def compete(path, log):
    for _ in range(20):
        with Lock(path).held() as mine:
            if mine:
                inside = path.with_name("inside")
                inside.touch(exist_ok=False)
                with log.open("a") as file:
                    file.write("x")
                inside.unlink()


def test_of_many_processes_one_at_a_time_is_inside(tmp_path):
    args = (tmp_path / "held", tmp_path / "log")
    crowd = [fork.Process(target=compete, args=args) for _ in range(6)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text()
