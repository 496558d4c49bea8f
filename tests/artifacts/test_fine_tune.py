"""What is stored is what was trained, for every initialisation."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file

from osrm_exp import CONF, needs, pipeline
from osrm_exp.adapter import read_adapter
from osrm_exp.artifacts import Workshop
from osrm_exp.artifacts.fine_tune import read_start
from osrm_exp.bench import Bench
from osrm_exp.lora import Result
from osrm_exp.store import Store
from osrm_exp.tasks import data

INITS = sorted(file.stem for file in (CONF / "init").glob("*.yaml"))


@pytest.mark.parametrize("init", INITS)
def test_a_stored_adapter_scores_what_training_saw(cell, workshop, init):
    chosen = cell(
        "roberta", f"init={init}", "merge=individual", "dataset.only=[cola,stsb]", "tuning.lr=1e-2"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = pipeline.run(chosen, workshop).rows
    fine_tunes = [needs.fine_tune(chosen, task) for task in chosen.tasks]
    folders = [workshop.store.folder(f) for f in fine_tunes]
    adapters = [read_adapter(folder) for folder in folders]
    bench = Bench(chosen, adapters, workshop)
    for index, (task, folder) in enumerate(zip(chosen.tasks, folders)):
        values = bench.scores(Result(adapters[index].updates), "tune")[index].values
        best = json.loads((folder / "training.json").read_text())["headline"]
        assert values[task.headline] == pytest.approx(best, abs=2e-3), task.name
    assert {row["init"] for row in rows} == {init}


@pytest.mark.parametrize("init", ["pissa", "olora", "corda"])
def test_a_base_that_peft_modified_gives_a_delta_of_twice_the_rank(cell, workshop, init):
    chosen = cell("roberta", f"init={init}", "merge=individual")
    rows = pipeline.run(chosen, workshop).rows
    assert rows[0]["output"] == "per_task, lowrank 8"  # r=4


@pytest.mark.parametrize(
    ("family", "first", "outputs"),
    [("roberta", "mnli", 3), ("bert", "cola", 2), ("t5", "mnli", 3), ("llama", "cola", 2)],
)
def test_an_intermediate_task_hands_on_its_factors_and_the_head_that_fits(
    cell, workshop, family, first, outputs
):
    still = f"+tuning.per_task.stsb={{intermediate: {first}, lr: 1e-12, epochs: 1}}"
    chosen = cell(family, "init=osrm", "merge=individual", f"dataset.only=[stsb,{first}]", still)
    stsb, given = (needs.fine_tune(chosen, task) for task in chosen.tasks)
    assert stsb.intermediate == given and not stsb.others  # no A of its own from others' data
    pipeline.run(chosen, workshop)  # stsb is asked for first: it builds the other
    after, before = (read_adapter(workshop.store.folder(f)) for f in (stsb, given))
    start = read_start(workshop.store.folder(stsb))
    for name, update in before.updates.items():
        assert update.B.norm() > 0
        torch.testing.assert_close(start[name], update.A)
        torch.testing.assert_close(after.updates[name].A, update.A)
        torch.testing.assert_close(after.updates[name].B, update.B)
    for name, head in before.heads.items():
        if head.shape == after.heads[name].shape:
            torch.testing.assert_close(after.heads[name], head)
        else:
            assert len(head) == outputs and len(after.heads[name]) == 1


def test_training_goes_on_from_an_intermediate_task(cell, workshop):
    goes_on = "+tuning.per_task.stsb.intermediate=mnli"
    chosen = cell("roberta", "merge=individual", "dataset.only=[mnli,stsb]", goes_on)
    pipeline.run(chosen, workshop)
    mnli, stsb = (
        read_adapter(workshop.store.folder(needs.fine_tune(chosen, task))).updates
        for task in chosen.tasks
    )
    assert all(not torch.allclose(stsb[n].B, mnli[n].B, atol=1e-4) for n in mnli)


def test_a_gpu_that_is_not_there_is_one_sentence(workshop, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU here: trainer=cpu"):
        Workshop(workshop.store, "gpu")


def test_a_seed_draws_rows_samples_and_start_and_draws_them_again(cell, tmp_path):
    drawn, few = {}, ["dataset.only=[cola,stsb]", "dataset.rows={train: 40, validation: 20}"]
    for name, seed in {"one": 1, "again": 1, "two": 2}.items():
        chosen = cell(
            "roberta", "init=osrm", "merge=average", "tuning.epochs=1", *few, f"seed={seed}"
        )
        data.load.cache_clear()
        workshop = Workshop(Store(tmp_path / name), progress=False)
        scored = pipeline.run(chosen, workshop)
        wanted = needs.fine_tunes(chosen)
        files = [workshop.store.folder(one) for one in (*wanted, *needs.of_inits(wanted))]
        drawn[name] = {
            "rows": [sorted(one["row"] for one in scored.predictions if one["task"] == task.name)
                     for task in chosen.tasks],
            "samples": [load_file(f / "statistic.safetensors") for f in files[len(wanted) :]],
            "start": [read_start(f) for f in files[: len(wanted)]],
            "trained": [load_file(f / "adapter_model.safetensors") for f in files[: len(wanted)]],
            "predictions": scored.predictions, "scores": [r["value"] for r in scored.rows],
        }  # fmt: skip
    for what, one in drawn["one"].items():
        assert _same(one, drawn["again"][what]), what
    for what in ("rows", "samples", "start", "trained"):
        pairs = zip(drawn["one"][what], drawn["two"][what], strict=True)
        assert not any(_same(one, two) for one, two in pairs), what


def _same(one, other):
    """Equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other
