import math

import pytest
import torch

from osrm_exp.spec import Task
from osrm_exp.tasks.metrics import metrics_of, scores


def task(labels, headline="accuracy"):
    names = tuple("abc"[:labels]) if labels else None
    return Task(name="t", path="p", source="s", text=("x",), labels=names, headline=headline,
                seed=0, holdout=0.1)  # fmt: skip


def one_hot(classes, width):
    return torch.nn.functional.one_hot(torch.tensor(classes), width).float()


def test_binary_scores_follow_their_definitions():
    values, degenerate = scores(task(2), one_hot([1, 1, 0, 0, 1], 2), torch.tensor([1, 0, 0, 0, 1]))
    assert values["accuracy"] == pytest.approx(0.8)
    assert values["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert values["accuracy_f1"] == pytest.approx((0.8 + 0.8) / 2)
    assert values["mcc"] == pytest.approx((2 * 2 - 1 * 0) / math.sqrt(3 * 2 * 3 * 2))
    assert not degenerate


def test_a_constant_prediction_scores_zero_correlation_and_is_flagged():
    labels = torch.tensor([0, 0, 1, 0, 1])
    values, degenerate = scores(task(2, "mcc"), one_hot([0] * 5, 2), labels)
    assert values["mcc"] == 0 and values["f1"] == 0 and degenerate
    values, degenerate = scores(
        task(0, "pearson_spearman"), torch.full((5, 1), 2.5), torch.arange(5.0)
    )
    assert values == {"pearson": 0, "spearman": 0, "pearson_spearman": 0} and degenerate


def test_correlations():
    truth = torch.arange(6.0)
    values, degenerate = scores(task(0, "pearson"), (truth**3)[:, None], truth)
    assert values["spearman"] == pytest.approx(1) and 0.8 < values["pearson"] < 1
    assert not degenerate


def test_wrong_headlines_and_broken_outputs_are_refused():
    with pytest.raises(ValueError, match="headline 'f1'"):
        metrics_of(task(3, "f1"))
    with pytest.raises(ValueError, match="not finite"):
        scores(task(2), torch.tensor([[math.nan, 0]]), torch.tensor([0]))
