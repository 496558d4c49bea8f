import math

import numpy as np
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
    found = scores(task(2), one_hot([1, 1, 0, 0, 1], 2), torch.tensor([1, 0, 0, 0, 1]))
    assert found.values["accuracy"] == pytest.approx(0.8)
    assert found.values["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert found.values["accuracy_f1"] == pytest.approx((0.8 + 0.8) / 2)
    assert found.values["mcc"] == pytest.approx((2 * 2 - 1 * 0) / math.sqrt(3 * 2 * 3 * 2))
    assert not found.degenerate and found.largest_share == pytest.approx(0.6)
    assert found.predictions.tolist() == [1, 1, 0, 0, 1] and found.labels.tolist() == [
        1,
        0,
        0,
        0,
        1,
    ]


def test_a_constant_prediction_scores_zero_correlation_and_is_flagged():
    found = scores(task(2, "mcc"), one_hot([0] * 5, 2), torch.tensor([0, 0, 1, 0, 1]))
    assert found.values["mcc"] == 0 and found.values["f1"] == 0
    assert found.degenerate and found.largest_share == 1
    found = scores(task(0, "pearson_spearman"), torch.full((5, 1), 2.5), torch.arange(5.0))
    assert found.values == {"pearson": 0, "spearman": 0, "pearson_spearman": 0}
    assert found.degenerate and found.largest_share == 1


def test_floors_are_the_scores_of_the_majority_class_and_zero_for_a_correlation():
    labels = torch.tensor([1, 1, 1, 0])
    found = scores(task(2), one_hot([0, 1, 0, 1], 2), labels)
    assert found.floors == scores(task(2), one_hot([1] * 4, 2), labels).values
    assert found.floors["accuracy"] == 0.75 and found.floors["mcc"] == 0
    assert found.floors["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1))
    three = scores(task(3), one_hot([0, 1, 2], 3), torch.tensor([2, 2, 0]))
    assert three.floors == {"accuracy": pytest.approx(2 / 3), "mcc": 0}
    value = scores(task(0, "pearson"), torch.randn(9, 1), torch.arange(9.0))
    assert set(value.floors.values()) == {0.0} and value.floors.keys() == value.values.keys()


def test_correlations():
    truth = torch.arange(6.0)
    found = scores(task(0, "pearson"), (truth**3)[:, None], truth)
    assert found.values["spearman"] == pytest.approx(1) and 0.8 < found.values["pearson"] < 1
    assert not found.degenerate and np.array_equal(found.predictions, truth.numpy() ** 3)
    single = scores(task(0, "pearson"), torch.ones(1, 1), torch.ones(1))
    assert set(single.values.values()) == {0.0}


def test_wrong_headlines_and_broken_outputs_are_refused():
    with pytest.raises(ValueError, match="headline 'f1'"):
        metrics_of(task(3, "f1"))
    with pytest.raises(ValueError, match="not finite"):
        scores(task(2), torch.tensor([[math.nan, 0]]), torch.tensor([0]))
