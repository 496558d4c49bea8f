"""What can go wrong under a sweep: one clear message, and a sweep that finishes after the cause is
removed, with the numbers of an undisturbed one."""

import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest

from osrm_exp import hub
from osrm_exp.artifacts import statistic
from osrm_exp.compose import cell_from
from osrm_exp.job import _cell
from osrm_exp.needs import fine_tunes
from osrm_exp.report.rows import read_rows, rows_file
from osrm_exp.store import Store, lock, store
from osrm_exp.store.lock import Lock
from osrm_exp.tasks import data
from osrm_exp.training.module import LoraFineTuning

fork = multiprocessing.get_context("fork")
SMALL = ["dataset.only=[cola,sst2]", "tuning.epochs=1", "merge=regmean", "init=osrm"]
TIMES = ["seconds", "merge_seconds", "overrides"]


def run(config):
    return _cell(config)[0]


@pytest.fixture
def config(configured):
    return configured("roberta", *SMALL)


@pytest.fixture
def another():
    """What another process would do: verify again, read rows and weights again."""

    def forget():
        store._whole.clear()
        hub._lost.clear()
        data.load.cache_clear()

    forget()
    return forget


def rows(config):
    return read_rows(config["paths"]["results"]).drop(columns=TIMES).sort_values(["task", "metric"])


def flip(file):
    found = bytearray(file.read_bytes())
    found[len(found) // 2] ^= 1
    file.write_bytes(found)


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("harm", [flip, truncate])
def test_every_damaged_file_of_every_artifact_is_found_and_built_again(
    config, another, harm, caplog
):
    assert run(config) == "finished"
    before, root = rows(config), Store(config["paths"]["store"]).root
    files = [p for p in root.glob("*/[!.]*/*") if p.suffix in (".safetensors", ".json")]
    one_a_kind = {(p.parent.parent.name, p.name): p for p in files}
    assert {name for _, name in one_a_kind} >= {
        "adapter_model.safetensors", "start.safetensors", "statistic.safetensors", "shared.json",
        "adapter_config.json", "training.json", "manifest.json",
    }  # fmt: skip
    for file in one_a_kind.values():
        harm(file)
    shutil.rmtree(config["paths"]["results"])
    another()
    with caplog.at_level(logging.WARNING, "osrm_exp"):
        assert run(config) == "finished"
    said = [r.getMessage() for r in caplog.records if " is damaged: " in r.getMessage()]
    assert len(said) == len({file.parent for file in one_a_kind.values()})
    pd.testing.assert_frame_equal(rows(config), before)


@pytest.mark.parametrize("harm", [flip, truncate, lambda file: file.write_text("")])
def test_damaged_rows_are_named_and_made_again(config, harm, caplog):
    assert run(config) == "finished" and run(config) == "skipped"
    before, file = rows(config), rows_file(config["paths"]["results"], cell_from(config).digest)
    harm(file)
    with pytest.raises(ValueError, match="is damaged"):
        rows(config)
    with caplog.at_level(logging.WARNING, "osrm_exp"):
        assert run(config) == "finished"
    assert f"{file} is damaged" in caplog.text
    pd.testing.assert_frame_equal(rows(config), before)


def test_a_hub_that_goes_down_midway_is_told_and_the_rest_is_made_later(
    config, another, suite, monkeypatch
):
    import datasets

    reads, down = [], []

    def load_dataset(path, name, *, revision, split):
        reads.append(name)
        if down and name == "sst2":
            raise ConnectionError("the net is unreachable")
        split = {"validation": "validation"}.get(split, split)
        return datasets.Dataset.from_parquet(str(suite / name / f"{split}.parquet"))

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    config["dataset"]["path"] = "nyu-mll/glue"
    down.append(True)
    with pytest.raises(ValueError, match=r"neither from the hub nor from its cache \(the net is"):
        run(config)
    assert not list(Store(config["paths"]["store"]).root.glob("FineTune/[!.]*"))
    another()
    down.clear()
    assert run(config) == "finished" and reads.count("sst2") > 1


@pytest.mark.parametrize("what", ["rows", "checkpoint"])
def test_what_was_changed_between_runs_is_another_input(
    config, another, tmp_path, suite, checkpoints, what
):
    for name, source in (("rows", suite), ("checkpoint", checkpoints["roberta"])):
        shutil.copytree(source, tmp_path / name)
    config["dataset"]["path"], config["model"]["path"] = map(
        str, (tmp_path / "rows", tmp_path / "checkpoint")
    )
    assert run(config) == "finished"
    change(tmp_path, what)
    another()
    assert run(config) == "finished"  # not "skipped"
    again = read_rows(config["paths"]["results"])
    assert again.cell.nunique() == 2 and again.setup.nunique() == 2  # never in one average


def change(folder, what):
    if what == "rows":
        file = folder / "rows" / "cola" / "train.parquet"
        table = pd.read_parquet(file)
        table.assign(label=1 - table.label).to_parquet(file)
    else:
        file = folder / "checkpoint" / "config.json"
        found = json.loads(file.read_text())
        file.write_text(json.dumps({**found, "layer_norm_eps": 1e-4}))


@pytest.mark.parametrize("what", ["rows", "checkpoint"])
def test_what_is_changed_while_a_cell_runs_is_kept_out_of_the_store(
    config, another, tmp_path, suite, checkpoints, what, monkeypatch
):
    for name, source in (("rows", suite), ("checkpoint", checkpoints["roberta"])):
        shutil.copytree(source, tmp_path / name)
    config["dataset"]["path"], config["model"]["path"] = map(
        str, (tmp_path / "rows", tmp_path / "checkpoint")
    )
    write = statistic._write

    def changing(*args):
        write(*args)
        if not (tmp_path / "changed").exists():
            (tmp_path / "changed").touch()
            change(tmp_path, what)

    monkeypatch.setattr(statistic, "_write", changing)
    option = "dataset.path" if what == "rows" else "model.path"
    with pytest.raises(ValueError, match=rf"{option}=\S+ was changed meanwhile: run it again"):
        run(config)
    kept = [path.name for path in Store(config["paths"]["store"]).root.glob("*/[!.]*")]
    assert not [name for name in kept if what == "checkpoint" or "cola" in name]
    another()
    assert run(config) == "finished"


def hold(path, how):
    with Lock(path).held():
        path.with_name("held").touch()
        if how == "dies":
            os._exit(9)
        time.sleep(3600)


@pytest.mark.parametrize("how", ["dies", "stopped"])
def test_an_owner_of_a_lock_that_dies_or_is_stopped(config, another, how, monkeypatch, caplog):
    monkeypatch.setattr(lock, "BEAT", 0.1)
    monkeypatch.setattr(store, "TELL", 0.5)
    cell = cell_from(config)
    folder = Store(config["paths"]["store"]).folder(fine_tunes(cell)[0])
    folder.parent.mkdir(parents=True)
    owner = fork.Process(target=hold, args=(folder.with_name(f".{folder.name}.held"), how))
    owner.start()
    while not folder.with_name("held").exists():
        time.sleep(0.01)
    if how == "stopped":
        os.kill(owner.pid, signal.SIGSTOP)
        told = "silent for"
        end = threading.Thread(target=ended_once, args=(lambda: told in caplog.text, owner.pid))
        end.start()
    with caplog.at_level(logging.INFO, "osrm_exp"):
        assert run(config) == "finished"
    owner.join()
    if how == "stopped":
        end.join()
        assert f"held by process {owner.pid} on " in caplog.text
        assert "it is stopped or hangs; continue or end it" in caplog.text


def ended_once(seen, pid):
    deadline = time.monotonic() + 120
    while not seen() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("jump", [1e6, -1e6])
def test_a_clock_that_jumps_changes_no_number(config, another, monkeypatch, jump, tmp_path):
    assert run(config) == "finished"
    before, now, calls = rows(config), time.time, []

    def jumps():
        calls.append(1)
        return now() + jump * (len(calls) > 3)

    monkeypatch.setattr(time, "time", jumps)
    elsewhere = {k: str(tmp_path / "other" / k) for k in ("store", "results", "logs")}
    config["paths"] = elsewhere
    assert run(config) == "finished" and len(calls) > 3
    pd.testing.assert_frame_equal(rows(config), before)
    assert (read_rows(elsewhere["results"]).seconds > 0).all()


def test_a_fine_tuning_killed_in_its_middle_goes_on_to_the_same_bits(
    configured, another, tmp_path, monkeypatch
):
    config = configured("roberta", "dataset.only=[cola,sst2]", "tuning.epochs=40", "merge=ties",
                        "tuning.lora.lora_dropout=0.1")  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "osrm_exp", *config["overrides"]])
    adapters, deadline = tmp_path / "store" / "FineTune", time.monotonic() + 600
    written = set()
    while len(written) < 3 and time.monotonic() < deadline:  # epochs
        written |= {p.stat().st_mtime_ns for p in adapters.glob(".*/resume/last.ckpt")}
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(adapters.glob(".*/resume/last.ckpt")) and not list(adapters.glob("[!.]*"))
    steps, step = [], LoraFineTuning.training_step
    monkeypatch.setattr(
        LoraFineTuning, "training_step", lambda *args: steps.append(1) or step(*args)
    )
    assert run(config) == "finished"
    after_the_kill = len(steps)
    killed, weights = rows(config), tensors(adapters)
    steps.clear()
    config["paths"] = {k: str(tmp_path / "calm" / k) for k in ("store", "results", "logs")}
    assert run(config) == "finished"
    assert len(steps) / 2 < after_the_kill < len(steps)
    assert weights == tensors(tmp_path / "calm" / "store" / "FineTune") and len(weights) == 2
    pd.testing.assert_frame_equal(rows(config), killed)


def tensors(adapters):
    """The bytes of an adapter's tensors, by name."""
    files = adapters.glob("[!.]*/adapter_model.safetensors")
    return {file.parent.name: file.read_bytes() for file in files}


@pytest.fixture
def disk(tmp_path):
    """A small file system of one's own, in a folder with spaces and umlauts."""
    folder = tmp_path / "Meine Läufe" / "großer Speicher"
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system wants root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_store_that_is_full_or_read_only_fails_its_cells_and_takes_them_later(
    checkpoints, suite, disk, tmp_path
):
    results, logs = disk.parent / "Ergebnisse", disk.parent / "Protokolle"
    chosen = ["dataset=glue", "dataset.only=cola", "model=roberta_large", "tuning.epochs=1",
              "tuning.max_length=32", "protocol.holdout=0.2", "merge=average"]  # fmt: skip
    line = [sys.executable, "-m", "osrm_exp", *chosen, f"model.path={checkpoints['roberta']}",
            f"dataset.path={suite}", f"paths.store={disk}", f"paths.results={results}",
            f"paths.logs={logs}", "-m"]  # fmt: skip

    def answered(code, *said):
        answer = subprocess.run(line, capture_output=True, text=True, timeout=900)
        assert answer.returncode == code, answer.stdout + answer.stderr
        for words in said:
            assert words in answer.stdout, answer.stdout + answer.stderr
        assert "Traceback" not in answer.stdout + answer.stderr

    def remount(options):
        subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)

    answered(1, f"the store {disk} has no space left", "0 finished, 0 skipped, 1 failed")
    remount("size=64m,ro")
    answered(1, f"the store {disk} cannot be written to", "paths.store=DIR takes another")
    remount("rw")
    answered(0, "1 finished, 0 skipped, 0 failed")
    remount("ro")
    shutil.rmtree(results)
    answered(0, "1 finished, 0 skipped, 0 failed")  # of what the store holds
    told = subprocess.run(
        [sys.executable, "-m", "osrm_exp.status", str(results), str(logs)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert told.returncode == 0 and "1 cells: 1 ok" in told.stdout, told.stdout + told.stderr
