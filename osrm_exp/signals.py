"""SIGINT and SIGTERM end a program cleanly: one sentence, code 130 or 143, no process left behind.

A signal raises `Stopped` in the main thread, wherever it is; as a `KeyboardInterrupt` it passes
whoever catches `Exception`, and unwinds what is half done. Libraries catch it all the same
(Lightning makes an exit of code 1 of it), so what came is remembered too.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread, current_thread, main_thread
from types import FrameType

PATIENCE = 30.0  # seconds that unwinding may take
ORPHAN = 5.0  # and where nobody waits for it
GRACE = 600.0  # seconds that a scheduler may leave a job which it has told to end
_received: list[int] = []
_overheard: list[int] = []
_listening: list[int] = []  # this process, if it does; one that is forked inherits its parent's


class Stopped(KeyboardInterrupt):
    """The program was told to end, by the signal in `args`."""


@contextmanager
def one_sentence(what_next: str = "the same command continues") -> Iterator[None]:
    """Around a whole program: what a signal interrupts ends with one sentence and 128 + signal."""
    listen()
    try:
        yield
    except BaseException as error:
        if not (_received or isinstance(error, KeyboardInterrupt)):
            raise
        _farewell(error, what_next)
    if _received:
        _farewell(None, what_next)


def listen() -> None:
    """Lets both signals raise `Stopped`; a worker of a launcher follows its parent besides.

    A worker calls it when its job starts, and who shares a process with a library that hears them
    itself calls it again. In a job of Slurm they are submitit's: it lets SIGTERM pass, which comes
    before a preemption, and requeues on SIGUSR2; SIGTERM is overheard.
    """
    if current_thread() is not main_thread():
        return
    first = _listening != [os.getpid()]
    _listening[:] = [os.getpid()]
    if "SUBMITIT_EXECUTOR" in os.environ:
        if first:
            _overhear()
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    if first and (parent := multiprocessing.parent_process()) is not None:
        _watch(parent.pid)


def leave_to_parent() -> None:
    """A process whose parent hears every signal, and ends it; it ends too if the parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    _watch(os.getppid() if parent is None else parent.pid)


def step_aside() -> None:
    """What follows runs in a process of its own; this one hears the signals and ends as it does.

    For a library that cannot be interrupted at every moment, or hears signals itself.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    both = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, both)
    child = os.fork()
    os.setpgid(child, child)  # what a terminal or a scheduler sends to the group is not for it
    if not child:
        leave_to_parent()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
        return
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except Stopped:
        os.killpg(child, signal.SIGKILL)  # with whatever it started
        os.waitpid(child, 0)
        raise
    os._exit(code if code >= 0 else 128 - code)  # what is left to do was done there


def check() -> None:
    """Raises `Stopped` if a signal came and a library has swallowed what it raised."""
    if _received:
        raise Stopped(_received[0])


def outlast() -> None:
    """Waits for the end of a job of Slurm that was told to end: what fails then failed for that.

    SIGTERM reaches every process of a job, and a cell cannot do without some of them (wandb's, a
    loader's); its own end comes later. It is no failure, for the job may be requeued.
    """
    if "SUBMITIT_EXECUTOR" in os.environ:
        time.sleep(1)  # another process may have heard it first
        if _overheard:
            logging.getLogger("osrm_exp").info("told to end, and waits for it")
            time.sleep(GRACE)


def _overhear() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def hear(number: int, frame: FrameType | None) -> None:
        _overheard.append(number)
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, hear)


def _watch(parent: int | None) -> None:
    if parent is not None:
        Thread(target=_follow, args=(parent,), daemon=True).start()


def _stop(number: int, _frame: object) -> None:
    if _received:  # a terminal and a launcher may both send one: let the first unwind
        return
    _received.append(number)
    Thread(target=_insist, args=(128 + number,), daemon=True).start()
    raise Stopped(number)


def _insist(code: int) -> None:
    time.sleep(PATIENCE)
    logging.getLogger("osrm_exp").error("did not end within %.0f s, and is cut off", PATIENCE)
    os._exit(code)


def _follow(parent: int) -> None:
    """Ends this process soon after its parent, which had no time to say so if it was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN)  # a launcher's worker has no way out of its loop but its parent's word
    os._exit(128 + signal.SIGTERM)


def _farewell(error: BaseException | None, what_next: str) -> None:
    number = _received[0] if _received else signal.SIGINT
    if isinstance(error, Stopped) and error.args:  # perhaps that of a worker
        (number,) = error.args
    for late in (signal.SIGINT, signal.SIGTERM):  # Python gives handlers back before it ends
        signal.signal(late, signal.SIG_IGN)
    word = "terminated" if number == signal.SIGTERM else "interrupted"
    print(f"\nosrm_exp: {word}; {what_next}", file=sys.stderr)
    sys.exit(128 + number)
