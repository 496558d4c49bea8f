import errno
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

from osrm_exp.record import Record
from osrm_exp.store import Store, manifest, resume, store

fork = multiprocessing.get_context("fork")


class Note(Record):
    text: str
    name: str = "note"

    @property
    def label(self) -> str:
        return self.name

    def build(self, folder: Path, workshop) -> None:
        with (folder / "built").open("a") as file:
            file.write(self.text)
        workshop(self, folder)


class Book(Record):
    notes: dict[str, tuple[Note, ...]]
    label: str = "book"

    def build(self, folder: Path, workshop) -> None:
        (folder / "book.safetensors").write_text("tensors")
        (folder / "config").write_text(str(os.getpid()))


def fine(artifact, folder):
    pass


@pytest.fixture
def forget():
    """What another process would do: verify again."""
    store._whole.clear()
    return store._whole.clear


def test_a_product_is_built_once(tmp_path):
    store, calls = Store(tmp_path), []
    for _ in range(2):
        folder = store.get(Note(text="a"), lambda *_: calls.append(1))
    assert calls == [1] and (folder / "manifest.json").is_file()
    store.get(Note(text="b"), lambda *_: calls.append(1))
    assert calls == [1, 1]
    assert sorted(p.name for p in (tmp_path / "Note").iterdir()) == sorted(
        store.folder(Note(text=t)).name for t in "ab"
    )


def flip(folder, other):
    file = folder / "built"
    found = bytearray(file.read_bytes())
    found[0] ^= 1
    file.write_bytes(found)
    return "the checksum of built"


def truncate(folder, other):
    (folder / "built").write_text("")
    return "built has 0 bytes in place of 1"


def lose(folder, other):
    (folder / "built").unlink()
    return "built is missing"


def swap(folder, other):
    (folder / "built").write_bytes((other / "built").read_bytes())
    return "the checksum of built"


def replace(folder, other):
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    return "it is another one, Note/note-"


def strip(folder, other):
    (folder / "manifest.json").unlink()
    return "it has no manifest.json"


def garble(folder, other):
    (folder / "manifest.json").write_text("{")
    return "its manifest.json is damaged"


def gut(folder, other):
    (folder / "manifest.json").write_text("[]")
    return "its manifest.json is damaged"


@pytest.mark.parametrize("harm", [flip, truncate, lose, swap, replace, strip, garble, gut])
def test_what_is_damaged_is_named_moved_aside_and_built_again(tmp_path, caplog, harm, forget):
    store, calls = Store(tmp_path), []
    other = store.get(Note(text="b"), fine)
    folder = store.get(Note(text="a"), fine)
    said = harm(folder, other)
    forget()
    assert not store.has(Note(text="a")) and store.has(Note(text="b"))
    with caplog.at_level(logging.WARNING, "osrm_exp"):
        store.get_all([Note(text=t) for t in "ab"], lambda note, _: calls.append(note.text))
    assert calls == ["a"] and (folder / "built").read_text() == "a"
    (record,) = caplog.records
    assert str(folder) in record.getMessage() and said in record.getMessage()
    assert (tmp_path / "damaged" / "Note" / folder.name).is_dir()
    harm(folder, other)
    forget()
    store.get(Note(text="a"), fine)
    assert len(list((tmp_path / "damaged" / "Note").iterdir())) == 2


def test_a_process_verifies_once_and_again_what_was_replaced(tmp_path, monkeypatch, forget):
    store = Store(tmp_path)
    folder = store.get(Note(text="a"), fine)
    forget()
    looked, damage = [], manifest.damage
    monkeypatch.setattr(manifest, "damage", lambda *a: looked.append(1) or damage(*a))
    for _ in range(3):
        assert Store(tmp_path).has(Note(text="a"))
    assert len(looked) == 1
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(folder)
    (tmp_path / "copy").rename(folder)
    assert store.has(Note(text="a")) and len(looked) == 2


def test_a_manifest_names_inputs_needs_and_versions_and_no_machine(tmp_path):
    store, book = Store(tmp_path), Book(notes={"own": (Note(text="a"), Note(text="b"))})
    found = manifest.read(store.get(book, None))
    assert found["place"] == f"Book/book-{book.digest}"
    assert found["inputs"] == book.model_dump(mode="json")
    assert found["needs"] == sorted(f"Note/note-{Note(text=t).digest}" for t in "ab")
    assert found["files"]["book.safetensors"]["bytes"] == len("tensors")
    assert "torch" in found["libraries"] and found["code"].startswith("0.")
    assert str(tmp_path) not in json.dumps(found)


def test_no_bit_of_a_manifest_can_flip_unnoticed(tmp_path):
    book = Book(notes={"own": (Note(text="a"),)})
    folder = Store(tmp_path).get(book, None)
    file, place = folder / "manifest.json", f"Book/book-{book.digest}"
    whole = file.read_bytes()
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 7
        file.write_bytes(flipped)
        assert manifest.damage(folder, place), whole[max(0, at - 20) : at + 20]


def test_an_older_manifest_without_a_seal_counts(tmp_path):
    folder = Store(tmp_path).get(Note(text="a"), fine)
    file, place = folder / "manifest.json", f"Note/{folder.name}"
    found = json.loads(file.read_text())
    del found["seal"]
    file.write_text(json.dumps(found))
    assert manifest.damage(folder, place) is None
    found["files"]["built"] = {"size": 1}
    file.write_text(json.dumps(found))
    assert "its manifest.json is damaged" in manifest.damage(folder, place)


def test_content_is_that_of_the_tensors_where_there_are_any(tmp_path, forget):
    first, second = Store(tmp_path / "1"), Store(tmp_path / "2")
    book = Book(notes={})
    first.get(book, None)
    (second.get(book, None) / "config").write_text("in another order")
    assert first.content(book) == second.content(book)
    for each in (first, second):
        each.get_all([Note(text=t) for t in "ab"], fine)
    assert first.content(Note(text="a")) == second.content(Note(text="a"))
    assert first.content(Note(text="a")) != first.content(Note(text="b"))


@pytest.mark.parametrize("name", ["../../evil", "a/b", "..", ".hidden", "", " ", "a\nb", "x" * 200])
def test_no_label_leaves_the_store(tmp_path, name):
    with pytest.raises(ValueError, match=r"name a file|120 bytes"):
        Store(tmp_path / "store").get(Note(text="a", name=name), fine)
    assert not (tmp_path / "store").exists()


def test_spaces_and_umlauts_are_names(tmp_path):
    root = tmp_path / "ein Ordner für alles"
    assert Store(root).get(Note(text="a", name="große Daten"), fine).is_dir()


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    def full(artifact, folder):
        raise RuntimeError("I/O error: No space left on device (os error 28)")  # safetensors

    store = Store(tmp_path)
    with pytest.raises(OSError, match=r"has no space left; .* the same command continues"):
        store.get(Note(text="a"), full)
    assert not store.has(Note(text="a")) and list((tmp_path / "Note").iterdir()) == []
    store.get(Note(text="a"), fine)


@pytest.fixture
def disk(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system wants root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def big(artifact, folder):
    (folder / "big").write_bytes(bytes(2**21))


def torch_big(artifact, folder):
    torch.save(torch.zeros(2**20), folder / "big")


@pytest.mark.parametrize("big", [big, torch_big])
def test_a_disk_that_is_really_full(disk, big):
    with pytest.raises(OSError, match="has no space left"):
        Store(disk).get(Note(text="a"), big)
    assert list((disk / "Note").iterdir()) == []
    assert Store(disk).get(Note(text="a"), fine).is_dir()


def test_a_read_only_store_gives_what_it_has_and_says_why_not_more(disk, forget):
    store = Store(disk)
    store.get(Note(text="a"), fine)
    forget()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert store.get(Note(text="a"), fine).is_dir()
    with pytest.raises(OSError, match=r"cannot be written to .*; paths.store=DIR"):
        store.get(Note(text="b"), fine)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_nothing(tmp_path, interruption):
    def stop(artifact, folder):
        raise interruption

    store = Store(tmp_path)
    with pytest.raises(interruption):
        store.get(Note(text="a"), stop)
    assert not store.has(Note(text="a")) and list((tmp_path / "Note").iterdir()) == []


def steps(artifact, folder):
    """Two steps, and an end after the first."""
    done = resume(folder) / "done"
    if not done.exists():
        done.write_text("one")
        raise OSError(errno.EIO, "the net is down")
    (folder / "steps").write_text(f"{done.read_text()} two")


def kill(artifact, folder):
    (resume(folder) / "done").write_text("one")
    os._exit(9)


def _get(root, action, name="a"):
    Store(root).get(Note(text=name), action)


def test_an_interrupted_build_finds_what_it_left(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(OSError, match="the net is down"):
        store.get(Note(text="a"), steps)
    folder = store.get(Note(text="a"), steps)
    assert (folder / "steps").read_text() == "one two"
    assert {p.name for p in folder.iterdir()} == {"built", "steps", "manifest.json"}
    assert list((tmp_path / "Note").iterdir()) == [folder]


def test_a_killed_builder_frees_its_lock_and_its_half_product_is_dropped(tmp_path):
    killed = fork.Process(target=_get, args=(tmp_path, kill))
    killed.start()
    killed.join()
    assert killed.exitcode == 9
    start = time.monotonic()
    folder = Store(tmp_path).get(Note(text="a"), steps)
    assert time.monotonic() - start < 5
    assert (folder / "built").read_text() == "a" and (folder / "steps").read_text() == "one two"
    assert list((tmp_path / "Note").iterdir()) == [folder]


def slow(artifact, folder):
    with (folder.parents[1] / "log").open("a") as log:
        log.write(artifact.text)
    time.sleep(0.4)


def _get_all(root, names):
    Store(root).get_all([Note(text=n) for n in names], slow)


def test_two_processes_share_the_work_and_build_nothing_twice(tmp_path):
    workers = [fork.Process(target=_get_all, args=(tmp_path, "abcd")) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted((tmp_path / "Note" / "log").read_text()) == list("abcd")


def test_waiting_says_who_holds_what(tmp_path, caplog):
    (tmp_path / "Note").mkdir()
    worker = fork.Process(target=_get_all, args=(tmp_path, "a"))
    worker.start()
    while not (tmp_path / "Note" / "log").exists():
        time.sleep(0.01)
    with caplog.at_level(logging.INFO, "osrm_exp"):
        folder = Store(tmp_path).get(Note(text="a"), fine)
    worker.join()
    said = [r.getMessage() for r in caplog.records]
    assert f"waits for Note/{folder.name}, held by process {worker.pid} on " in said[0]
