import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import Field

from osrm_exp.record import Record
from osrm_exp.report.rows import write_rows
from osrm_exp.store import Store, manifest
from osrm_exp.store.__main__ import verify
from osrm_exp.store.garbage import artifacts, garbage
from osrm_exp.store.lock import Lock


class Product(Record):
    model: str = "m"
    task: str

    @property
    def label(self) -> str:
        return self.task

    def build(self, folder: Path, workshop) -> None:
        (folder / "x.safetensors").write_text(self.digest)


class Adapter(Product):
    own: dict[str, "Gram"] = Field(default={})
    before: "Adapter | None" = None


class Gram(Product):
    samples: int = 1
    expert: Adapter | None = None


Adapter.model_rebuild()

own = Gram(task="cola")
first = Adapter(task="mnli")
used = Adapter(task="cola", own={"gram": own}, before=first)
merged = Gram(task="cola", samples=9)  # what a merge asked for: no row names it
of_expert = Gram(task="cola", expert=used)
KEPT = [own, first, used, merged, of_expert]
unused = Adapter(task="cola", model="m2")
superseded = Adapter(task="cola", own={"gram": merged})
of_unused = Gram(task="cola", model="m2", expert=unused)
of_superseded = Gram(task="cola", expert=superseded)
UNUSED = [unused, superseded, of_unused, of_superseded]


@pytest.fixture
def filled(tmp_path):
    """A store, and a results folder one row of which names one adapter."""
    store = Store(tmp_path / "store")
    store.get_all([*KEPT, *UNUSED], None)
    rows = tmp_path / "results" / "x" / "rows"
    rows.mkdir(parents=True)
    row = {"cell": "0123456789abcdef", "adapters": [used.digest], "value": 0.5}
    (rows / "0123456789abcdef.jsonl").write_text(json.dumps(row) + "\n")
    return store


def command(*arguments):
    line = [sys.executable, "-m", "osrm_exp.store", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


def test_what_a_row_needs_stays_and_nothing_else(filled, tmp_path):
    found = {item.path for item in garbage(filled.root, [tmp_path / "results"], days=0)}
    assert found == {filled.folder(a) for a in UNUSED}


def test_what_is_young_stays(filled, tmp_path):
    assert garbage(filled.root, [tmp_path / "results"], days=1) == []
    os.utime(filled.folder(unused), (0, time.time() - 2 * 86400))
    (item,) = garbage(filled.root, [tmp_path / "results"], days=1)
    assert item.path == filled.folder(unused)


def test_gc_shows_what_goes_before_it_goes(filled, tmp_path):
    asked = command("gc", filled.root, tmp_path / "results", "--days", "0")
    assert asked.returncode == 0, asked.stderr
    assert "in 4\nnothing is removed: --yes does that" in asked.stdout
    assert all(str(filled.folder(a)) in asked.stdout for a in UNUSED)
    assert len(list(artifacts(filled.root))) == 9
    done = command("gc", filled.root, tmp_path / "results", "--days", "0", "--yes")
    assert done.returncode == 0 and "\n4 are removed" in done.stdout
    assert {i.path for i in artifacts(filled.root)} == {filled.folder(a) for a in KEPT}
    assert not list(filled.root.rglob("*.gone"))


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [(None, "holds no rows"), ('{"adapters": ["0000000000000000"]}', "name nothing of this store")],
)
def test_gc_refuses_what_would_remove_all(filled, tmp_path, rows, sentence):
    other = tmp_path / "other"
    other.mkdir()
    if rows:
        (other / "rows.jsonl").write_text(f"{rows}\n")
    asked = command("gc", filled.root, other, "--days", "0", "--yes")
    assert asked.returncode == 1 and sentence in asked.stderr and "Traceback" not in asked.stderr
    assert len(list(artifacts(filled.root))) == 9


def test_gc_believes_no_damaged_rows(filled, tmp_path):
    row = {"cell": "1" * 16, "schema": 2, "adapters": [first.digest]}
    file = write_rows(tmp_path / "results" / "x", row["cell"], [row])
    file.write_text(file.read_text().replace(first.digest, "0" * 16))
    asked = command("gc", filled.root, tmp_path / "results", "--days", "0", "--yes")
    assert asked.returncode == 1 and f"{file} is damaged (altered" in asked.stderr
    assert len(list(artifacts(filled.root))) == 9


def test_what_an_interrupted_removal_left_stands_in_no_way(filled, tmp_path):
    place = filled.folder(unused)
    gone = place.with_name(f".{place.name}.gone")
    gone.mkdir()
    (gone / "x.safetensors").touch()
    done = command("gc", filled.root, tmp_path / "results", "--days", "0", "--yes")
    assert done.returncode == 0 and not gone.exists() and not place.exists()


def test_looking_at_a_store_changes_nothing(filled):
    place = filled.folder(used)
    place.with_name(".dead.scratch").mkdir()
    place.with_name(".dead.held").write_text("{}")
    os.utime(place.with_name(".dead.held"), (0, 0))
    before = sorted(filled.root.rglob("*"))
    listed = command("ls", filled.root)
    assert ".dead.scratch: its build was interrupted" in listed.stdout
    assert command("verify", filled.root).returncode == 0
    assert sorted(filled.root.rglob("*")) == before


def test_a_build_that_runs_is_no_left_over(filled, tmp_path):
    place = filled.folder(used)
    for name in ("dead", "alive"):
        place.with_name(f".{name}.scratch").mkdir()
    with Lock(place.with_name(".alive.held")).held():
        found = garbage(filled.root, [tmp_path / "results"], days=0)
    assert [i.path.name for i in found if i.path.name[0] == "."] == [".dead.scratch"]


def test_a_build_that_begins_after_the_look_is_spared(filled, tmp_path):
    scratch = filled.folder(used).with_name(".dead.scratch")
    scratch.mkdir()
    found = garbage(filled.root, [tmp_path / "results"], days=0)
    with Lock(scratch.with_name(".dead.held")).held():
        removed = {item.path: item.remove() for item in found}
    assert not removed.pop(scratch) and scratch.is_dir() and all(removed.values())


def test_two_removals_at_once_are_one(filled, tmp_path):
    one, two = (garbage(filled.root, [tmp_path / "results"], days=0) for _ in range(2))
    assert [item.remove() for item in one] == [True] * 4
    assert [(item.remove(), item.bytes, item.days) for item in two] == [(False, 0, 0.0)] * 4
    assert {i.path for i in artifacts(filled.root)} == {filled.folder(a) for a in KEPT}


def test_what_goes_while_it_is_verified_is_not_damaged(filled, monkeypatch, capsys):
    damage = manifest.damage

    def gone(folder, place):
        if folder == filled.folder(unused):
            shutil.rmtree(folder)
        return damage(folder, place)

    monkeypatch.setattr(manifest, "damage", gone)
    assert verify(filled.root) == 0 and str(filled.folder(unused)) not in capsys.readouterr().out


@pytest.mark.parametrize("how", ["altered", "cut short"])
def test_gc_believes_no_damaged_manifest_of_what_stays(filled, tmp_path, how):
    file = filled.folder(used) / "manifest.json"
    found = json.loads(file.read_text()) | {"needs": []}
    file.write_text(json.dumps(found) if how == "altered" else file.read_text()[:99])
    asked = command("gc", filled.root, tmp_path / "results", "--days", "0", "--yes")
    assert asked.returncode == 1 and "what it needs is not known" in asked.stderr
    assert f"Adapter/{used.label}-{used.digest} stands behind a result" in asked.stderr
    assert len(list(artifacts(filled.root))) == 9


def test_ls_and_verify(filled):
    listed = command("ls", filled.root)
    assert listed.returncode == 0 and listed.stdout.strip().endswith("in 9")
    assert all(str(filled.folder(a)) in listed.stdout for a in (*KEPT, *UNUSED))
    assert command("verify", filled.root).stdout.endswith(
        "9 of 9 are whole; a run that needs another builds it again\n"
    )
    (filled.folder(used) / "x.safetensors").write_text("something else")
    found = command("verify", filled.root)
    assert found.returncode == 1 and "8 of 9 are whole" in found.stdout
    assert f"{filled.folder(used)}: x.safetensors has 14 bytes in place of 16" in found.stdout
    nowhere = command("ls", filled.root / "nowhere")
    assert nowhere.returncode == 1 and "is not a folder" in nowhere.stderr
