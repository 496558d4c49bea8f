import pytest
import torch
from datasets import Dataset

from osrm_exp.model import load_tokenizer
from osrm_exp.tasks import data
from osrm_exp.tasks.data import LengthBuckets


def loaded(cell, *overrides, family="roberta"):
    chosen = cell(family, *overrides)
    tokenizer = load_tokenizer(chosen.model)
    return [data.load(task, tokenizer, chosen.tuning.max_length) for task in chosen.tasks]


def texts(rows):
    return [tuple(row["input_ids"]) for row in rows]


def test_tune_is_a_slice_of_train_that_training_never_sees(cell):
    whole = loaded(cell, "protocol=paper", "protocol.holdout=0")[0]
    cola = loaded(cell)[0]
    assert len(cola.tune) == 12 and len(cola.train) == 48 and len(cola.validation) == 24
    assert sorted(texts(cola.tune + cola.train)) == sorted(texts(whole.train))
    assert whole.tune == [] and texts(whole.validation) == texts(cola.validation)


def test_rows_are_drawn_by_the_seed_and_caps_take_the_first(cell):
    few = loaded(cell, "dataset.rows.train=30")[0]
    other = loaded(cell, "dataset.rows.train=30", "dataset.seed=1")[0]
    assert len(few.tune) + len(few.train) == 30
    assert sorted(texts(few.train + few.tune)) != sorted(texts(other.train + other.tune))
    whole, capped = loaded(cell)[0], loaded(cell, "dataset.cap.validation=5")[0]
    assert texts(capped.validation) == texts(whole.validation)[:5]


def test_labels_keep_their_kind(cell):
    cola, stsb, mnli = loaded(cell)
    assert {type(row["labels"]) for row in cola.train} == {int}
    assert {type(row["labels"]) for row in stsb.train} == {float}
    assert {row["labels"] for row in mnli.train} == {0, 1, 2}


def test_batches_hold_every_row_once_with_padding_masked(cell):
    cola = loaded(cell)[0]
    batches = cola.batches("validation", 7)
    assert sum(len(b["labels"]) for b in batches) == 24
    lengths = [b["attention_mask"].sum(1) for b in batches]
    assert all(b["input_ids"].shape[1] == n.max() for b, n in zip(batches, lengths))
    longer = cola.batches("validation", 7, pad_to=32)
    assert all(b["input_ids"].shape[1] == 32 for b in longer)
    assert torch.equal(torch.cat([b["attention_mask"].sum(1) for b in longer]), torch.cat(lengths))


def test_a_missing_pad_token_becomes_eos(cell):
    chosen = cell("llama")
    tokenizer = load_tokenizer(chosen.model)
    assert tokenizer.pad_token == tokenizer.eos_token and tokenizer.padding_side == "right"


def test_buckets_are_a_permutation_with_like_lengths_side_by_side():
    lengths = torch.randint(3, 60, (500,)).tolist()
    sampler = LengthBuckets(lengths, 16, seed=0)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(500)) and first != second
    assert list(LengthBuckets(lengths, 16, seed=0)) == first
    spread = [max(c) - min(c) for c in
              ([lengths[i] for i in first[s : s + 16]] for s in range(0, 480, 16))]  # fmt: skip
    assert sum(spread) / len(spread) < 8


def spoiled(cell, monkeypatch, column, value):
    task = cell("roberta").tasks[0]
    rows = data.read(task, "train").to_list()
    rows[3][column] = value
    monkeypatch.setattr(data, "read", lambda *_: Dataset.from_list(rows))
    return loaded(cell, "dataset.seed=9")


def test_unseen_labels_and_empty_splits_are_named(cell, monkeypatch):
    with pytest.raises(ValueError, match="cola/train holds the label 7"):
        spoiled(cell, monkeypatch, "label", 7)
    monkeypatch.setattr(data, "read", lambda *_: Dataset.from_dict({"sentence": [], "label": []}))
    with pytest.raises(ValueError, match="cola/train is empty"):
        loaded(cell, "dataset.seed=5")


def test_a_missing_folder_or_file_is_named(cell, tmp_path):
    with pytest.raises(ValueError, match=r"dataset\.path=.*/cola is not a folder"):
        loaded(cell, f"dataset.path={tmp_path}")
    for task in ("cola", "stsb", "mnli"):
        (tmp_path / task).mkdir()
    with pytest.raises(ValueError, match=r"there is no file .*cola/train\.parquet"):
        loaded(cell, f"dataset.path={tmp_path}")
