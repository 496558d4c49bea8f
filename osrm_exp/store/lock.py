"""A lock that holds over a shared file system, and whose dead owner is noticed.

Creating a file that must not exist is atomic on every file system, NFS included. Whether its owner
is alive is asked of the kernel on the same machine (a file lock dies with its process, and a
stopped process keeps it) and of the file's time on another: an owner touches it every `BEAT`
seconds and is taken for dead once a waiting process, by its own clock, has seen no change for
`LEASE` seconds. filelock's `SoftFileLease` is close, but replaces a dead owner by a rename that NFS
refuses, and a stopped one without a word.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, TextIO

from filelock import lock_descriptor

log = logging.getLogger("osrm_exp")
BEAT, LEASE = 10.0, 120.0
BOOT = Path("/proc/sys/kernel/random/boot_id")  # one kernel: containers of a machine share it
MACHINE = BOOT.read_text().strip() if BOOT.is_file() else socket.gethostname()


class Lock:
    """The lock at `path`; keep the object while waiting, for it remembers what it has seen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = ""
        self._seen: tuple[Any, float] = (None, 0.0)

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Whether the lock could be taken; it is given back at the end."""
        file = self._new() or self._inherited()
        if file is None:
            yield False
            return
        stop = Event()
        Thread(target=_beat, args=(file, stop), daemon=True).start()
        try:
            yield True
        finally:
            stop.set()
            with suppress(OSError):
                if self.mine():
                    self.path.unlink()
            file.close()

    def mine(self) -> bool:
        """Whether it has not been taken away meanwhile."""
        return self._look()[0].get("token") == self.token

    def holder(self) -> str:
        """Who has the lock, for how long, and whether it gives no sign of life."""
        owner, silent = self._look()
        if "pid" not in owner:
            return "a process that has just begun"
        taken = _span(time.time() - owner["since"])
        who = f"process {owner['pid']} on {owner['host']} for {taken}"
        if silent > 3 * BEAT:
            who += f", silent for {_span(silent)}: it is stopped or hangs; continue or end it"
        return who

    def dead(self) -> bool:
        """Whether its owner is gone, as far as a single look can tell."""
        owner, _ = self._look()
        try:
            with self.path.open() as file:
                if owner.get("machine") == MACHINE:
                    return _locked(file)
                return time.time() - os.fstat(file.fileno()).st_mtime > LEASE
        except FileNotFoundError:
            return True

    def _look(self) -> tuple[dict[str, Any], float]:
        """The owner's record and for how many seconds the file has not changed under our eyes.

        It is opened, not only looked at, since NFS asks its server then.
        """
        owner: dict[str, Any] = {}
        with suppress(FileNotFoundError), self.path.open() as file:
            with suppress(ValueError):
                owner = dict(json.load(file))
            stamp = (owner.get("token"), os.fstat(file.fileno()).st_mtime_ns)
            if stamp != self._seen[0]:
                self._seen = (stamp, time.monotonic())
            return owner, time.monotonic() - self._seen[1]
        return owner, 0.0

    def _new(self) -> TextIO | None:
        with suppress(FileExistsError):
            return self._owned(self.path.open("x+"))
        return None

    def _inherited(self) -> TextIO | None:
        """The lock of a dead owner."""
        owner, silent = self._look()
        with suppress(FileNotFoundError):  # given back, or another process was faster
            if owner.get("machine") == MACHINE:
                return self._from_the_kernel()
            if silent >= LEASE:
                log.warning("%s: taken over from %s", self.path.name, self.holder())
                aside = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
                self.path.rename(aside)  # of several processes one succeeds
                aside.unlink()
                return self._new()
        return None

    def _from_the_kernel(self) -> TextIO | None:
        file = self.path.open("r+")
        if _locked(file) and os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
            return self._owned(file)
        file.close()
        return None

    def _owned(self, file: TextIO) -> TextIO:
        self.token = uuid.uuid4().hex
        record = {
            "token": self.token, "pid": os.getpid(), "host": socket.gethostname(),
            "machine": MACHINE if _locked(file) else None, "since": time.time(),
        }  # fmt: skip
        try:
            file.truncate(0)
            file.write(json.dumps(record))
            file.flush()
        except OSError:
            self.path.unlink(missing_ok=True)
            raise
        return file


def _locked(file: TextIO) -> bool:
    """Whether the kernel gives this process the file; False where the file system has no locks."""
    try:
        return lock_descriptor(file.fileno(), blocking=False)
    except OSError:
        return False


def _beat(file: TextIO, stop: Event) -> None:
    while not stop.wait(BEAT):
        with suppress(OSError, ValueError):
            os.utime(file.fileno())


def _span(seconds: float) -> str:
    """Seconds in words; a clock that was set back counts as none."""
    seconds = max(seconds, 0)
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
