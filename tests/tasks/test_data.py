import pytest
import torch

from osrm_exp.model import load_tokenizer
from osrm_exp.tasks import data, rows
from osrm_exp.tasks.data import LengthBuckets


def loaded(cell, *overrides, family="roberta"):
    chosen = cell(family, *overrides)
    return [data.load(task, chosen.model, chosen.tuning.max_length) for task in chosen.tasks]


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


def test_the_seed_of_a_cell_draws_rows_slice_and_samples(cell):
    def drawn(*overrides):
        cola = loaded(cell, "dataset.rows={train: 30, validation: 10}", *overrides)[0]
        return [[row["row"] for row in split] for split in (cola.train, cola.tune, cola.validation)]

    one, two = drawn("seed=1"), drawn("seed=2")
    data.load.cache_clear()
    assert drawn("seed=1") == one and all(sorted(a) != sorted(b) for a, b in zip(one, two))
    assert drawn("seed=1", "dataset.seed=0") == drawn("seed=2", "dataset.seed=0")
    assert one == drawn("seed=5", "dataset.seed=1")


def test_seeds_that_draw_rows_share_a_line_and_a_setup(cell):
    one, two = cell("roberta", "seed=1"), cell("roberta", "seed=2")
    assert one.digest != two.digest and one.tasks[0].digest != two.tasks[0].digest
    assert (one.line, one.setup) == (two.line, two.setup)
    pinned = cell("roberta", "seed=1", "dataset.seed=1")
    assert pinned.tasks[0].digest == one.tasks[0].digest  # the same rows, the same adapter
    assert pinned.line != one.line and pinned.setup != one.setup


def test_batches_say_which_rows_they_hold(cell):
    cola = loaded(cell, "dataset.rows.validation=10")[0]
    batches = cola.batches("validation", 4)
    texts = {row["row"]: row["input_ids"] for row in cola.validation}
    masked = [ids[mask.bool()].tolist() for b in batches
              for ids, mask in zip(b["input_ids"], b["attention_mask"])]  # fmt: skip
    assert masked == [texts[number] for number in cola.numbers("validation")]


def test_an_empty_split_is_named_and_an_odd_one_is_told_once(cell, monkeypatch, caplog):
    same = {"sentence": ["a dog"] * 9, "label": [1] * 9}
    monkeypatch.setattr(rows, "read", lambda *_: same)
    for _ in range(2):
        loaded(cell, "dataset.only=cola", "dataset.seed=9")
    (told,) = [record.message for record in caplog.records]
    assert told.startswith("cola: texts in both train and validation: 1; train has no row of un")
    monkeypatch.setattr(rows, "read", lambda *_: {"sentence": [], "label": []})
    with pytest.raises(ValueError, match="cola/train is empty"):
        loaded(cell, "dataset.only=cola", "dataset.seed=5")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [("dataset.only=[cola,cola]", "name every task once"), ("dataset.only=[]", "null takes all"),
     ("dataset.only=3", r"only names \[3\]"), ("+dataset.source=x", "source is not an option"),
     ("dataset.tasks.cola.text=[]", "at least 1"),
     ("dataset.tasks.cola.text=[a,b,c]", "text names 3"),
     ("dataset.tasks.cola.labels=[one]", "at least 2"),
     ("dataset.tasks.cola.labels=[a,a]", "labels: .*it names 'a' twice"),
     ("dataset.seed=-1", "seed: Input should be greater than or equal to 0"),
     ("seed=99999999999999999999", "seed: Input should be less than 4294967296"),
     ("dataset.tasks.cola=null", "text")],
)  # fmt: skip
def test_a_suite_that_makes_no_sense_is_refused(cell, override, sentence):
    with pytest.raises(ValueError, match=sentence):
        cell("roberta", override)


def test_one_task_one_column_and_a_home_are_plain_strings(cell, suite, monkeypatch):
    monkeypatch.setenv("HOME", str(suite.parent))
    chosen = cell("roberta", "dataset.only=cola", f"dataset.path='~/{suite.name}'",
                  "dataset.tasks.cola.text=sentence")  # fmt: skip
    (plain,) = cell("roberta", "dataset.only=[cola]").tasks
    assert chosen.tasks == (plain,)


def test_a_config_of_the_hub_is_part_of_what_the_rows_are(cell):
    hub = ["dataset.path=nyu-mll/glue", "dataset.only=cola"]
    (plain,), (other,) = (
        cell("roberta", *hub, *more).tasks for more in ([], ["+dataset.tasks.cola.config=sst2"])
    )
    assert other.source == f"{plain.source}:sst2" and other.digest != plain.digest


def test_a_missing_folder_or_file_is_named(cell, tmp_path):
    with pytest.raises(ValueError, match=r"dataset\.path=.*/cola is not a folder"):
        loaded(cell, f"dataset.path={tmp_path}")
    for task in ("cola", "stsb", "mnli"):
        (tmp_path / task).mkdir()
        (tmp_path / task / "notes.txt").write_text("no rows")
    with pytest.raises(ValueError, match=r"there is no file .*cola/train\.parquet, nor \.csv"):
        loaded(cell, f"dataset.path={tmp_path}")
