"""Jobs of a Slurm that keeps no accounts, watched by `squeue`.

submitit learns from `sacct` alone that a job ended without a result (cancelled, out of memory, its
node lost), and where there is none it waits for ever.
"""

from __future__ import annotations

import subprocess
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

ENDED = """BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY
REVOKED TIMEOUT""".split()
INTERVAL = 60  # seconds


class Queue(SlurmInfoWatcher):
    """States by `squeue`, which knows a job until some minutes after its end: one that it does not
    know has ended."""

    def _make_command(self) -> list[str] | None:
        waits = self._registered - self._finished
        line = ["squeue", "--me", "--array", "--states=all", "--noheader", "--format=%i|%T"]
        return line if waits else None

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        """By job, its state: one of those that end it, GONE, or RUNNING."""
        text = string if isinstance(string, str) else string.decode()
        known = dict(line.strip().split("|") for line in text.splitlines())
        found = {job: known.get(job, "GONE") for job in self._registered}
        over = (*ENDED, "GONE")
        return {job: {"State": one if one in over else "RUNNING"} for job, one in found.items()}


class Watch(Callback):
    """Before a sweep."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Sets submitit's watcher where `sacct` answers nothing."""
        try:
            accounts = not subprocess.run(["sacct"], capture_output=True, check=False).returncode
        except OSError:  # it is not installed
            accounts = False
        if not accounts:
            SlurmJob.watcher = Queue(INTERVAL)
