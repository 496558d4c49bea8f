"""Several processes train what one trains: real ranks over gloo, through the store."""

import json
import multiprocessing
import os

import pytest
import torch

from osrm_exp import needs, pipeline
from osrm_exp.adapter import read_adapter
from osrm_exp.artifacts import Workshop
from osrm_exp.store import Store
from osrm_exp.training import ranks
from osrm_exp.training.ranks import share

CLOSE = 0.01  # Adam divides rounding by a gradient that is next to zero
WITHOUT = ["tuning.dropout=0.0", "merge=average"]


def both(chosen, tmp_path, devices=2):
    """What one process makes of a cell, and what several do: rows, adapters, curves."""
    found = []
    for count in (1, devices):
        workshop = Workshop(Store(tmp_path / str(count)), devices=count, progress=False)
        outcome = pipeline.run(chosen, workshop)
        folders = [workshop.store.folder(one) for one in needs.fine_tunes(chosen)]
        curves = [json.loads((folder / "training.json").read_text()) for folder in folders]
        found.append((outcome, [read_adapter(folder) for folder in folders], curves))
    return found


def test_two_processes_make_what_one_makes(cell, tmp_path):
    # 49 rows: three batches and one row, which a rank is without; clipping sees all of a gradient
    chosen = cell("roberta", *WITHOUT, "dataset.only=cola", "protocol.holdout=0.18",
                  "tuning.clip=0.05")  # fmt: skip
    alone, together = both(chosen, tmp_path)
    assert [r["adapters"] for r in alone[0].rows] == [r["adapters"] for r in together[0].rows]
    (one,), (two,) = alone[1], together[1]
    for name, update in one.updates.items():
        assert update.B.norm() > 0
        assert (two.updates[name].B - update.B).norm() < CLOSE * update.B.norm()
    for name, head in one.heads.items():
        assert (two.heads[name] - head).norm() < CLOSE * head.norm()
    (one,), (two,) = alone[2], together[2]
    assert (two["epoch"], len(two["epochs"])) == (one["epoch"], len(one["epochs"]))
    for before, after in zip(one["epochs"], two["epochs"]):
        assert before.keys() == after.keys()
        same = {k: v for k, v in before.items() if k != "seconds"}
        assert {k: after[k] for k in same} == pytest.approx(same, rel=1e-4, abs=1e-5)


def test_shares_of_a_batch_are_the_batch_and_weigh_as_it_does():
    for rows in (1, 2, 5, 8):
        batch = {"input_ids": torch.arange(rows * 3).view(rows, 3), "labels": torch.arange(rows)}
        shares = [share(batch, rank, 3) for rank in range(3)]
        kept = torch.cat([s["labels"] for s in shares if s["weight"]])
        assert sorted(kept.tolist()) == list(range(rows))
        means = [s["weight"] * s["labels"].float().mean() for s in shares]
        assert sum(means) / 3 == pytest.approx(batch["labels"].float().mean())
    assert share(batch, 0, 1) is batch


@pytest.mark.parametrize(
    ("more", "devices", "sentence"),
    [
        (["tuning.dropout=0.0"], 3, "tuning.batch_size=16 of cola cannot be dealt out evenly"),
        (["+tuning.per_task.stsb.batch_size=5", *WITHOUT], 2, "batch_size=5 of stsb"),
        ([], 2, "hidden_dropout_prob=0.1"),
        (["tuning.dropout=0.1"], 2, r"tuning\.dropout=0\.1"),
        ([*WITHOUT, "tuning.lora.lora_dropout=0.1"], 2, r"tuning\.lora\.lora_dropout=0\.1\)"),
    ],
)
def test_what_would_change_a_number_is_refused_before_anything_is_built(
    cell, tmp_path, more, devices, sentence
):
    chosen, store = cell("roberta", "merge=average", *more), Store(tmp_path / "store")
    with pytest.raises(ValueError, match=sentence):
        pipeline.run(chosen, Workshop(store, devices=devices))
    assert not store.root.exists()
    pipeline.run(chosen, Workshop(store))
    pipeline.run(chosen, Workshop(store, devices=devices))  # nothing is to be trained


def test_more_gpus_than_there_are_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"trainer\.devices=2, but torch sees 1 GPU here"):
        Workshop(Store(tmp_path), "gpu", 2)


def fails(how, folder):
    rank = torch.distributed.get_rank()
    (folder / str(os.getpid())).touch()
    if rank == 1:
        if how == "dies":
            os._exit(9)
        raise ValueError("a reason")
    torch.distributed.barrier()  # for ever


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [("value", ValueError, "^a reason$"), ("dies", OSError, r"trainer\.devices=2 was lost")],
)
def test_one_that_fails_ends_all_and_says_why(tmp_path, how, kind, said):
    with pytest.raises(kind, match=said):
        ranks.run(2, fails, how, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert not [p for p in tmp_path.iterdir() if os.path.exists(f"/proc/{p.name}")]
    assert not multiprocessing.active_children()
