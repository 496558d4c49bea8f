"""What is done about Ray's signals, with a Ray that does nothing else; a real one is in
`test_launchers.py`."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, time, types
from omegaconf import OmegaConf
from osrm_exp import signals
from osrm_exp.launchers.ray_cluster import Start

def init(address):
    assert address == "auto"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    {init}

sys.modules["ray"] = types.SimpleNamespace(init=init)
config = OmegaConf.create({{"hydra": {{"launcher": {{"ray": {{"init": {{"address": "auto"}}}}}}}}}})
with signals.one_sentence():
    Start().on_multirun_start(config)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    "init",
    ["pass", "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", "raise ConnectionError"],
    ids=["runs", "is told to end as it starts", "finds no cluster"],
)
def test_a_signal_is_ours_whatever_ray_makes_of_it(init):
    line = [sys.executable, "-c", PROGRAM.format(init=init)]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 143, ended.stderr
    assert ended.stderr == "\nosrm_exp: terminated; the same command continues\n"
