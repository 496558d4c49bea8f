"""A Slurm of one node, in a folder of its own: no daemon, file or user of the machine is touched.

It wants root (its daemons start jobs as their owner) and Debian's `slurm-wlm`. The node claims more
CPUs than there are, so that jobs run side by side anywhere.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DAEMONS = ("slurmctld", "slurmd")
SETTINGS = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthType=auth/none
CryptoType=crypto/none
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=100000,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be none on this machine; empty where there can."""
    if lacking := [name for name in (*DAEMONS, "sbatch") if not shutil.which(name)]:
        return f"{lacking[0]} is not installed: apt-get install slurm-wlm"
    return "" if os.geteuid() == 0 else "Slurm's daemons want root"


@contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which `sbatch` and its like talk to it."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    file = folder / "slurm.conf"
    file.write_text(
        SETTINGS.format(
            folder=folder, host=socket.gethostname().partition(".")[0],
            controller=_port(), node=_port(),
        )
    )  # fmt: skip
    environment = {**os.environ, "SLURM_CONF": str(file)}
    daemons = [
        subprocess.Popen([name, "-D", "-f", str(file)], start_new_session=True,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name in DAEMONS
    ]  # fmt: skip
    try:
        _idle(environment, folder)
        yield environment
    finally:
        subprocess.run(["scancel", "--full", "--user=root"], env=environment, check=False)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _idle(environment: dict[str, str], folder: Path) -> None:
    line, deadline = ["sinfo", "--noheader", "--format=%T"], time.monotonic() + 60
    while time.monotonic() < deadline:
        found = subprocess.run(line, env=environment, capture_output=True, text=True)
        if found.stdout.strip() == "idle":
            return
        time.sleep(0.3)
    raise RuntimeError("".join(file.read_text()[-2000:] for file in folder.glob("*.log")))


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
