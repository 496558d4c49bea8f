import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from osrm_exp.record import Record
from osrm_exp.store import Store


class Note(Record):
    text: str

    @property
    def label(self) -> str:
        return "note"

    def build(self, folder: Path, workshop) -> None:
        with (folder / "built").open("a") as file:
            file.write(self.text)
        workshop(self, folder)


def fine(artifact, folder):
    pass


def test_a_product_is_built_once(tmp_path):
    store, calls = Store(tmp_path), []
    for _ in range(2):
        folder = store.get(Note(text="a"), lambda *_: calls.append(1))
    assert calls == [1] and (folder / "spec.json").is_file()
    store.get(Note(text="b"), lambda *_: calls.append(1))
    assert calls == [1, 1]


def test_a_full_disk_leaves_nothing(tmp_path):
    def full(artifact, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        store.get(Note(text="a"), full)
    assert not store.has(Note(text="a"))
    assert [p for p in (tmp_path / "Note").iterdir() if p.is_dir()] == []
    store.get(Note(text="a"), fine)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_nothing(tmp_path, interruption):
    def stop(artifact, folder):
        raise interruption

    store = Store(tmp_path)
    with pytest.raises(interruption):
        store.get(Note(text="a"), stop)
    assert not store.has(Note(text="a"))


def die(artifact, folder):
    os._exit(9)


def _get(root, action, name="a"):
    Store(root).get(Note(text=name), action)


def test_a_killed_builder_frees_its_lock_and_its_half_product_is_dropped(tmp_path):
    killed = multiprocessing.get_context("fork").Process(target=_get, args=(tmp_path, die))
    killed.start()
    killed.join()
    assert killed.exitcode == 9
    folder = Store(tmp_path).get(Note(text="a"), fine)
    assert (folder / "built").read_text() == "a"


def slow(artifact, folder):
    with (folder.parent / "log").open("a") as log:
        log.write(artifact.text)
    time.sleep(0.4)


def _get_all(root, names):
    Store(root).get_all([Note(text=n) for n in names], slow)


def test_two_processes_share_the_work_and_build_nothing_twice(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_get_all, args=(tmp_path, "abcd")) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted((tmp_path / "Note" / "log").read_text()) == list("abcd")
