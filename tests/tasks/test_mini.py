"""The generated suite: reproducible, disjoint, balanced, and no single cue gives a label away."""

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from osrm_exp.tasks import mini

SUITE = yaml.safe_load((Path(__file__).parents[2] / "conf/dataset/mini.yaml").read_text())
TASKS = SUITE["tasks"]
CLASSIFIED = [task for task in TASKS if task != "similarity"]


def texts(rows, task) -> list[tuple[str, ...]]:
    return list(zip(*(rows[column] for column in TASKS[task]["text"])))


def digest() -> str:
    """One digest of a few rows of every task and split."""
    rows = [mini.generate(t, s, 20, seed=3) for t in mini.GRAMMARS for s in mini.SPLITS]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def test_the_config_names_every_task_and_its_columns():
    assert list(TASKS) == list(mini.GRAMMARS)
    for task, line in TASKS.items():
        assert mini.generate(task, "train", 4, seed=0).keys() == {*line["text"], "label"}


def test_rows_are_the_same_in_every_process():
    code = "from tests.tasks.test_mini import digest; print(digest())"
    fresh = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=Path(__file__).parents[2], env={"PYTHONHASHSEED": "77"}, capture_output=True, text=True,
    )  # fmt: skip
    assert fresh.stdout.strip() == digest(), fresh.stderr


def test_seeds_and_splits_draw_different_rows():
    first = mini.generate("sentiment", "train", 50, seed=0)
    assert first == mini.generate("sentiment", "train", 50, seed=0)
    assert first != mini.generate("sentiment", "train", 50, seed=1)


@pytest.mark.parametrize("task", TASKS)
def test_no_pair_is_in_both_splits(task):
    """Across sizes and seeds, and with the two texts of a pair in either order."""
    train = texts(mini.generate(task, "train", 1000, seed=0), task)
    held = texts(mini.generate(task, "validation", 300, seed=1), task)
    assert len(set(train)) == 1000 and len(set(held)) == 300
    assert not {frozenset(pair) for pair in train} & {frozenset(pair) for pair in held}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rows", [1, 97, 384])
def test_labels_are_balanced_within_one(task, rows):
    labels = mini.generate(task, "train", rows, seed=0)["label"]
    counts = [Counter(labels)[value] for value in mini.GRAMMARS[task].labels]
    assert len(labels) == sum(counts) == rows and max(counts) - min(counts) <= 1
    assert {type(label) for label in labels} == {float if task == "similarity" else int}


@pytest.mark.parametrize("task", TASKS)
def test_texts_are_short_english_sentences(task):
    for row in texts(mini.generate(task, "train", 200, seed=0), task):
        assert sum(len(text.split()) for text in row) <= 20
        for text in row:
            assert text[0].isupper() and text[-1] in ".?" and "  " not in text and "{" not in text


@pytest.mark.parametrize("task", CLASSIFIED)
def test_length_and_single_words_do_not_give_the_label_away(task):
    """The best single cue, a word on one side or a length, guesses little better than chance."""
    rows = mini.generate(task, "train", 1200, seed=0)
    majority = 1 / len(mini.GRAMMARS[task].labels)
    cues: dict[tuple, Counter] = {}
    for pair, label in zip(texts(rows, task), rows["label"]):
        cues.setdefault(("length", sum(len(text.split()) for text in pair)), Counter())[label] += 1
        for side, text in enumerate(pair):
            for word in set(text.lower().strip(".?").split()):
                cues.setdefault((side, word), Counter())[label] += 1
    for cue, counts in cues.items():
        if (seen := counts.total()) >= 100:
            assert max(counts.values()) / seen < majority + 0.2, (cue, counts)


def test_unknown_names_and_exhausted_grammars_are_told():
    with pytest.raises(ValueError, match="unknown task 'cola': the mini suite has acceptability"):
        mini.generate("cola", "train", 4, seed=0)
    with pytest.raises(ValueError, match="unknown split 'test' of paraphrase: choose from train"):
        mini.generate("paraphrase", "test", 4, seed=0)
    with pytest.raises(
        ValueError, match=r"duplicate yields only about \d+ rows for validation, not 5000"
    ):
        mini.generate("duplicate", "validation", 5000, seed=0)
