import builtins

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from osrm_exp.spec import Task
from osrm_exp.tasks import texts
from osrm_exp.tasks.generation import Written
from osrm_exp.tasks.metrics import metrics_of, scores
from osrm_exp.tasks.texts import extracted, label_in, refusals, refuses

SUMS = r"#### *(-?[\d.,]*\d)"


def task(**own):
    fields = {"prompt": "{x}", "headline": "exact_match", **own}
    return Task(name="t", path="p", source="s", seed=0, holdout=0.1, **fields)


def wrote(*said, loss=0.5, tokens=4):
    return [Written(loss, tokens, text) for text in said]


@pytest.mark.parametrize(
    ("text", "found"),
    [("so it is\n#### 1,234", "1234"), ("#### 3\n#### 72.", "72"), ("####-5", "-5"),
     ("#### 2.50", "2.50"), ("72", "\0"), ("#### none", "\0")],
)  # fmt: skip
def test_an_answer_is_what_stands_last_behind_its_marks(text, found):
    assert extracted(text, SUMS) == found


def test_exact_match_counts_any_reference_and_no_answer_is_wrong():
    of = task(answer=SUMS, headline="exact_match", max_new_tokens=9)
    right = [("#### 1", "#### 2"), ("#### 3",), ("#### 3",)]
    found = scores(of, wrote("#### 2", "3", "#### 3"), right)
    assert found.values["exact_match"] == pytest.approx(2 / 3)
    assert found.floors["exact_match"] == pytest.approx(2 / 3)  # always 3
    assert found.predictions.tolist() == [1, 0, 1] and found.labels.tolist() == [1, 1, 1]
    assert "rouge_l" not in found.values


@pytest.mark.parametrize(
    ("text", "place"),
    [("Positive.", 1), ("It is negative, not positive", 0), ("not_positive", 2),
     ("positively", -1), ("", -1), ("**negative**", 0)],
)  # fmt: skip
def test_a_label_is_the_first_that_stands_as_a_word(text, place):
    assert label_in(text, ("negative", "positive", "not_positive")) == place


def test_label_words_are_scored_as_classes_and_what_is_none_is_wrong():
    of = task(labels=("no", "yes"), headline="accuracy", max_new_tokens=2)
    found = scores(of, wrote("no", "Yes!", "maybe", "no"), [0, 1, 1, 1], rows=[4, 5, 6, 7])
    assert found.values["accuracy"] == 0.5 and found.values["unread"] == 0.25
    assert found.floors["accuracy"] == 0.75
    assert found.predictions.tolist() == [0, 1, -1, 0] and list(found.rows) == [4, 5, 6, 7]
    assert not found.degenerate and found.largest_share == 0.5


def test_a_likelihood_is_a_mean_over_rows_and_the_loss_one_over_tokens():
    of = task(headline="likelihood")
    found = scores(of, [Written(0.0, 1), Written(np.log(4.0), 3)], [("a",), ("b",)])
    assert found.values == {
        "likelihood": pytest.approx(0.625), "response_loss": pytest.approx(0.75 * np.log(4)),
    }  # fmt: skip
    assert found.predictions.tolist() == pytest.approx([1.0, 0.25])
    assert not found.degenerate and found.floors["response_loss"] is None
    with pytest.raises(ValueError, match="not finite"):
        scores(of, [Written(float("nan"), 1)], [("a",)])


def test_refusals_are_told_by_how_they_begin():
    said = ["I’m sorry, no", "Sorry.", " I cannot help", "As an AI model", '"I can\'t']
    assert all(map(refuses, said))
    assert not any(map(refuses, ["Sure, I can", "To kill a process", "", "The sorry state"]))


def test_refusal_and_compliance_are_shares_of_their_own_prompts():
    truth, guess = np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 1, 0])
    found = refusals(truth, guess)
    assert found["refusal"] == pytest.approx(2 / 3) and found["compliance"] == 0.5
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, guess))
    assert refusals(truth, np.ones(5, int))["balanced_accuracy"] == 0.5
    of = task(labels=("Sure", "Sorry"), refusal=True, headline="balanced_accuracy",
              max_new_tokens=2)  # fmt: skip
    scored = scores(of, wrote("I cannot", "Here"), [1, 0])
    assert scored.values["balanced_accuracy"] == 1 and scored.floors["balanced_accuracy"] == 0.5


def test_texts_are_scored_by_the_reference_that_fits_best():
    of = task(headline="rouge_l", max_new_tokens=9)
    right = [("the cat sat on the mat today", "a dog ran"), ("the cat sat on the mat now",)]
    perfect = scores(of, wrote("the cat sat on the mat today", right[1][0]), right).values
    assert perfect["rouge_l"] == perfect["exact_match"] == 1
    assert perfect["bleu"] == pytest.approx(1)
    half = scores(of, wrote("a dog", "birds fly"), right)
    # 2 of 2 words in 3: F = 2 * 1 * 2/3 / (1 + 2/3)
    assert half.predictions.tolist() == pytest.approx([0.8, 0])
    assert half.floors["rouge_l"] == pytest.approx((1 + 6 / 7) / 2)  # the first reference, twice


def test_the_same_text_everywhere_is_marked():
    of = task(headline="rouge_l", max_new_tokens=9)
    found = scores(of, wrote("a", "a", "a"), [("a b",), ("c",), ("d",)])
    assert found.degenerate and found.largest_share == 1
    unfinished = [Written(0.5, 2, "a", ended=False), Written(0.5, 2, "b")]
    assert scores(of, unfinished, [("a",), ("b",)]).values["unfinished"] == 0.5


@pytest.mark.parametrize("name", ["response_loss", "bleu", "unfinished"])
def test_what_is_better_when_lower_or_no_mean_over_rows_leads_no_table(name):
    of = task(headline=name, max_new_tokens=9)
    with pytest.raises(ValueError, match=r"better when higher; choose among rouge_l, exact_match"):
        metrics_of(of)


def test_a_missing_library_is_told_with_the_command_that_installs_it(monkeypatch):
    real = builtins.__import__

    def fail(name, *rest, **more):
        if name.startswith("rouge_score"):
            raise ModuleNotFoundError(name="rouge_score")
        return real(name, *rest, **more)

    texts._libraries.cache_clear()
    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(ValueError, match=r'rouge_score is not installed: pip install "osrm-exp\[t'):
        metrics_of(task(headline="rouge_l", max_new_tokens=9))
    metrics_of(task(headline="exact_match", answer=SUMS, max_new_tokens=9))  # needs none
    texts._libraries.cache_clear()
