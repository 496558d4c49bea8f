"""What is done about Ray's signals, with a Ray that does nothing else; a real one is in
`test_launchers.py`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys, time, types
from omegaconf import OmegaConf
from osrm_exp import signals
from osrm_exp.launchers.ray_cluster import Start

def init(address):
    assert address == "auto"
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os.abort())
    print(os.getpid(), flush=True)
    {init}

sys.modules["ray"] = types.SimpleNamespace(init=init)
config = OmegaConf.create({{"hydra": {{"launcher": {{"ray": {{"init": {{"address": "auto"}}}}}}}}}})
with signals.one_sentence():
    Start().on_multirun_start(config)
    {after}
"""


def begun(init, after):
    line = [sys.executable, "-c", PROGRAM.format(init=init, after=after)]
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("init", "after"),
    [("time.sleep(600)", ""), ("pass", "time.sleep(600)")],
    ids=["as it starts", "as it runs"],
)
def test_a_signal_is_ours_whatever_ray_makes_of_it(number, init, after):
    with begun(init, after) as command:
        ray = command.stdout.readline().strip()
        os.killpg(command.pid, number)
        _, errors = command.communicate(timeout=120)
    assert command.returncode == 128 + number, errors
    word = "terminated" if number == signal.SIGTERM else "interrupted"
    assert errors == f"\nosrm_exp: {word}; the same command continues\n"
    assert not Path("/proc", ray).exists()


@pytest.mark.parametrize(
    ("init", "after", "code"),
    [
        ("pass", "sys.exit(1)", 1),
        ("raise ConnectionError", "print('told', file=sys.stderr)", 0),
        ("os.kill(os.getpid(), signal.SIGKILL)", "", 128 + signal.SIGKILL),
    ],
    ids=["a cell failed", "no cluster is found", "it is killed"],
)
def test_the_command_ends_as_what_ran_beside_it(init, after, code):
    with begun(init, after) as command:
        _, errors = command.communicate(timeout=120)
    assert command.returncode == code
    assert errors == ("told\n" if "told" in after else "")


def test_a_command_that_is_killed_leaves_nobody():
    with begun("pass", "time.sleep(600)") as command:
        ray = Path("/proc", command.stdout.readline().strip())
        command.kill()
    deadline = time.monotonic() + 60
    while ray.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not ray.exists()
