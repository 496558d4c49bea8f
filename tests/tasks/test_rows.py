"""Rows from files of every layout, and what is wrong with one, told by column and row."""

import csv
import json
import math
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow
import pytest
from datasets import Dataset
from pyarrow import parquet

from osrm_exp.spec import Task
from osrm_exp.tasks import rows
from osrm_exp.tasks.prompts import Row

TEXTS = ["a dog sees", 'the "cat", runs\nfast', "a fox", "null", "123"]
LABELS = [0, 1, 1, 0, 1]


def task(path, **fields):
    fields = {"text": "text", "labels": ("no", "yes"), "headline": "accuracy", **fields}
    return Task(name="t", path=str(path), source="s", seed=0, holdout=0.0, **fields)


def write(folder, name, texts, labels, column="label"):
    """A file of two columns in the format that its name says."""
    folder.mkdir(exist_ok=True)
    file, table = folder / name, [{"text": t, column: v} for t, v in zip(texts, labels)]
    if file.suffix == ".parquet":
        Dataset.from_list(table).to_parquet(str(file))
    elif file.suffix == ".csv":
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, ["text", column])
            writer.writeheader()
            writer.writerows(table)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in table))


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl", "json"])
@pytest.mark.parametrize("labels", [LABELS, ["no", "yes", "yes", "no", "yes"]])
def test_every_format_gives_the_same_rows(tmp_path, suffix, labels):
    write(tmp_path / "t", f"train.{suffix}", TEXTS, labels)
    found = rows.rows_of(task(tmp_path), "train")
    assert [row.texts for row in found] == [(text,) for text in TEXTS]
    assert [row.label for row in found] == LABELS and [row.number for row in found] == [*range(5)]
    with pytest.raises(ValueError, match="no column 'words'; it has: text, label"):
        rows.rows_of(task(tmp_path, text="words"), "train")


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_regression_reads_numbers_of_every_format(tmp_path, suffix):
    write(tmp_path / "t", f"train.{suffix}", ["a", "b"], [1.5, 2.0])
    found = rows.rows_of(task(tmp_path, labels=None), "train")
    assert [row.label for row in found] == [1.5, 2.0]


def test_the_layout_of_the_hub_its_config_and_another_label_column(tmp_path):
    write(tmp_path / "plain", "train-00001-of-00002.parquet", TEXTS[2:], LABELS[2:], "class")
    write(tmp_path / "plain", "train-00000-of-00002.parquet", TEXTS[:2], LABELS[:2], "class")
    found = rows.rows_of(task(tmp_path, config="plain", label="class"), "train")
    assert [row.texts[0] for row in found] == TEXTS and [row.label for row in found] == LABELS
    (tmp_path / "plain" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match="no one train split: train-00000-of-00002"):
        rows.rows_of(task(tmp_path, config="plain", label="class"), "train")


def test_a_split_in_two_formats_is_refused_and_a_likely_name_is_not_taken_for_it(tmp_path):
    write(tmp_path / "t", "train.csv", TEXTS, LABELS)
    write(tmp_path / "t", "train_old.parquet", TEXTS, LABELS)
    assert len(rows.rows_of(task(tmp_path), "train")) == 5
    write(tmp_path / "t", "train.jsonl", TEXTS, LABELS)
    with pytest.raises(ValueError, match=r"no one train split: train\.csv, train\.jsonl"):
        rows.rows_of(task(tmp_path), "train")


def test_rows_are_dropped_where_it_is_asked_for_and_keep_their_numbers(tmp_path):
    write(tmp_path / "t", "train.parquet", ["a", "b", "c"], [0, -1, 1])
    with pytest.raises(ValueError, match=r"the label -1 in column 'label', row 1 .*drop="):
        rows.rows_of(task(tmp_path), "train")
    found = rows.rows_of(task(tmp_path, drop=(-1,), cap={"train": 2}), "train")
    assert [(row.number, row.label) for row in found] == [(0, 0), (2, 1)]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("text", [None, 7, math.nan])
def test_what_is_no_text_is_told_by_column_and_row(tmp_path, suffix, text):
    texts = ["a", "b", text] if suffix == "jsonl" or text is None else [7.0, 8.0, text]
    write(tmp_path / "t", f"train.{suffix}", texts, [0, 1, 0])
    with pytest.raises(ValueError, match=r"t/train holds .* text column 'text', row [02] ") as said:
        rows.rows_of(task(tmp_path), "train")
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("labels", "values", "bad"),
    [(None, ["1.5", "high"], 0), (None, [1.0, math.nan], 1), (("no", "yes"), [0, 5], 1),
     (("no", "yes"), ["no", "maybe"], 1), (None, [0.5, None], 1)],
)  # fmt: skip
def test_what_is_no_label_is_told_by_column_and_row(tmp_path, suffix, labels, values, bad):
    write(tmp_path / "t", f"train.{suffix}", ["a", "b"], values)
    bad = 1 if suffix == "csv" else bad  # a CSV file has no strings but those that are no numbers
    with pytest.raises(
        ValueError, match=rf"t/train holds the label .* 'label', row {bad} "
    ) as said:
        rows.rows_of(task(tmp_path, labels=labels), "train")
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("train.csv", b"text,label\na,0,1\n"), ("train.csv", b""), ("train.csv", b'text,label\n"a,0'),
     ("train.jsonl", b'{"text": "a"'), ("train.jsonl", b'[{"text": "a", "label": 0}]'),
     ("train.parquet", b"PAR1 no"), ("train.csv", b"text,label\n\xff,0\n")],
)  # fmt: skip
def test_a_file_that_is_none_is_named(tmp_path, name, content):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} cannot be read: ") as said:
        rows.rows_of(task(tmp_path), "train")
    assert "\n" not in str(said.value)


def test_a_rewritten_file_with_its_old_time_stamp_is_read_anew(tmp_path):
    file = tmp_path / "t" / "train.parquet"
    for texts in (["aa", "bb"], ["cc", "dd"]):
        write(tmp_path / "t", file.name, texts, [0, 1])
        os.utime(file, (1, 1))
        assert [row.texts[0] for row in rows.rows_of(task(tmp_path), "train")] == texts


def test_local_rows_need_no_home(tmp_path):
    write(tmp_path / "t", "train.parquet", TEXTS, LABELS)
    code = (
        "import sys; from osrm_exp.tasks import rows; from osrm_exp.spec import Task; "
        f"t = Task(name='t', path={str(tmp_path)!r}, source='s', seed=0, holdout=0, text='text',"
        " labels=('no', 'yes'), headline='f1'); assert len(rows.rows_of(t, 'train')) == 5; "
        "assert 'datasets' not in sys.modules"
    )
    home = {**os.environ, "HOME": "/dev/null/none", "XDG_CACHE_HOME": "/dev/null/none"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=home, capture_output=True, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_what_is_odd_about_rows_is_said_in_a_few_words():
    of = task("generated")
    train = [Row(number, (text,), 0) for number, text in enumerate(TEXTS)]
    held = [Row(0, (" ",), 1), Row(1, (TEXTS[1],), 0)]
    assert list(rows.doubts(of, {"train": train, "validation": held})) == [
        "texts in both train and validation: 1",
        "train has no row of yes",
        "empty texts in validation: 1, the first in row 0",
    ]
    assert not list(rows.doubts(of, {"train": [*train[:1], held[1]._replace(label=1)],
                                     "validation": [held[0]._replace(texts=("x",)),
                                                    Row(2, ("y",), 0)]}))  # fmt: skip


@pytest.mark.parametrize(
    "name, text, fields, label",
    [
        ("train.csv", "text,label\na,007\n", {"labels": ("006", "007")}, 1),
        ("train.csv", "text,label\na,1.0\n", {"labels": ("1.0", "2.0")}, 0),
        ("train.jsonl", '{"text": "a", "label": 1.0}', {"labels": ("1.0", "2.0")}, 0),
        ("train.jsonl", '{"text": "a", "label": 2.0}', {"labels": ("1", "2")}, 1),
        ("train.jsonl", '{"text": "a", "label": true}', {"labels": ("true", "false")}, 0),
        ("train.jsonl", '{"text": "a", "label": true}', {}, 1),
        ("train.csv", f"text,label\n{'a ' * 99_999},1\n", {}, 1),
    ],
)
def test_a_label_is_its_name_before_it_is_a_place(tmp_path, name, text, fields, label):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / name).write_text(text)
    assert rows.rows_of(task(tmp_path, **fields), "train")[0].label == label


def test_a_decimal_is_a_number(tmp_path):
    column = {"text": ["a", "b"], "label": [Decimal("1.5"), Decimal("2.0")]}
    (tmp_path / "t").mkdir()
    parquet.write_table(pyarrow.table(column), tmp_path / "t" / "train.parquet")
    found = rows.rows_of(task(tmp_path, labels=None), "train")
    assert [row.label for row in found] == [1.5, 2.0]


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("train.csv", "text,text,label\na,b,0\n", "two columns 'text', of which"),
        ("train.jsonl", '{"text": "a", "text": "b", "label": 1}', "two columns 'text'"),
        ("train.jsonl", f'{{"text": "a", "label": {"9" * 400}}}', "label 9+ in column 'label'"),
        ("train.csv", f"text,label\na,{'9' * 5000}\n", "label inf in column 'label', row 0"),
        ("train.jsonl", f'{{"text": {"[" * 100_000}', "cannot be read: maximum recursion"),
        ("train.jsonl", r'{"text": "\ud800", "label": 1}', "half a character .* 'text', row 0"),
    ],
)  # fmt: skip
def test_what_would_be_lost_or_is_no_number_is_one_sentence(tmp_path, name, text, sentence):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / name).write_text(text)
    with pytest.raises(ValueError, match=sentence) as caught:
        rows.rows_of(task(tmp_path, labels=None), "train")
    assert "\n" not in str(caught.value)


def test_a_column_that_stands_twice_in_parquet_is_refused(tmp_path):
    table = pyarrow.Table.from_arrays([["a"], ["b"], [0]], names=["text", "text", "label"])
    (tmp_path / "t").mkdir()
    parquet.write_table(table, tmp_path / "t" / "train.parquet")
    with pytest.raises(ValueError, match=r"train\.parquet cannot be read: it has two columns"):
        rows.rows_of(task(tmp_path), "train")
