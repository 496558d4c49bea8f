"""What is stored is what was trained, for every initialisation."""

import json
import warnings

import pytest
import torch

from osrm_exp import CONF, pipeline
from osrm_exp.adapter import read_adapter
from osrm_exp.artifacts import Workshop

INITS = sorted(file.stem for file in (CONF / "init").glob("*.yaml"))


@pytest.mark.parametrize("init", INITS)
def test_a_stored_adapter_scores_what_training_saw(cell, workshop, init):
    chosen = cell("roberta", f"init={init}", "dataset.only=[cola,stsb]", "tuning.lr=1e-2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = pipeline.run(chosen.model_copy(update={"merge": INDIVIDUAL}), workshop)
    fine_tunes = [pipeline.fine_tune(chosen, task) for task in chosen.tasks]
    folders = [workshop.store.folder(f) for f in fine_tunes]
    adapters = [read_adapter(folder) for folder in folders]
    bench = pipeline.Bench(chosen, adapters, workshop)
    for index, (task, folder) in enumerate(zip(chosen.tasks, folders)):
        values, _ = bench.scores(adapters[index].updates, "tune")[index]
        best = json.loads((folder / "training.json").read_text())["headline"]
        assert values[task.headline] == pytest.approx(best, abs=2e-3), task.name
    assert {row["init"] for row in rows} == {init}


INDIVIDUAL = {"_target_": "osrm_exp.merging.individual"}


@pytest.mark.parametrize("init", ["pissa", "olora", "corda"])
def test_a_base_that_peft_modified_gives_a_delta_of_twice_the_rank(cell, workshop, init):
    chosen = cell("roberta", f"init={init}", "merge=individual")
    rows = pipeline.run(chosen, workshop)
    assert rows[0]["output"] == "per_task, lowrank 8"  # r=4


def test_a_gpu_that_is_not_there_is_one_sentence(workshop, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU here: trainer=cpu"):
        Workshop(workshop.store, "gpu")
