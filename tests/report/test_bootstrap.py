import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    matthews_corrcoef,
    recall_score,
)

from osrm_exp.report.bootstrap import DRAWS, _scored, hierarchical, redrawn

PEARSON = lambda a, b: pearsonr(a, b)[0]  # noqa: E731
METRICS = {
    "accuracy": accuracy_score, "f1": f1_score, "mcc": matthews_corrcoef, "pearson": PEARSON,
    "spearman": lambda a, b: spearmanr(a, b)[0],
    "accuracy_f1": lambda a, b: (accuracy_score(a, b) + f1_score(a, b)) / 2,
    "pearson_spearman": lambda a, b: (pearsonr(a, b)[0] + spearmanr(a, b)[0]) / 2,
    "balanced_accuracy": balanced_accuracy_score, "refusal": recall_score,
    "compliance": lambda a, b: recall_score(a, b, pos_label=0),
    "rouge_l": lambda a, b: b.mean(), "likelihood": lambda a, b: b.mean(),
}  # fmt: skip


def answers(metric, rows=300):
    draw = np.random.default_rng(3)
    if "pearson" in metric or "spearman" in metric:
        label = draw.uniform(0, 5, rows)
        return label, label + draw.normal(size=rows)
    label = draw.integers(3 if metric == "mcc" else 2, size=rows)
    return label, np.where(draw.random(rows) < 0.7, label, draw.permutation(label))


@pytest.mark.parametrize("metric", METRICS)
def test_a_weighted_metric_is_the_metric_of_the_rows_drawn(metric):
    label, guess = answers(metric)
    frame = pd.DataFrame({"label": label, "prediction": guess})
    chosen = np.random.default_rng(4).integers(300, size=300)
    weights = np.stack([np.ones(300), np.bincount(chosen, minlength=300)]).astype(np.float32)
    found = _scored(frame, weights, metric)
    assert found[0] == pytest.approx(100 * METRICS[metric](label, guess), abs=1e-3)
    near = 1.0 if "spearman" in metric else 1e-3  # its ranks stay
    assert found[1] == pytest.approx(100 * METRICS[metric](label[chosen], guess[chosen]), abs=near)


@pytest.mark.parametrize("metric", METRICS)
def test_constant_answers_score_what_the_tables_say(metric):
    frame = pd.DataFrame({"label": [0.0, 1.0] * 20, "prediction": 0.0})
    expected = {"accuracy": 50, "accuracy_f1": 25, "balanced_accuracy": 50, "compliance": 100}
    assert _scored(frame, np.ones((1, 40), np.float32), metric) == pytest.approx(
        [expected.get(metric, 0)]
    )


def test_the_interval_is_as_wide_as_theory_says():
    gains = np.random.default_rng(0).normal(2, 1, (400, 1))
    one = hierarchical(gains[..., None], 5.0, 0.95)
    half = 1.96 * gains.std() / 20
    assert (one["high"] - one["low"]) / 2 == pytest.approx(half, rel=0.1)
    assert one["p"] < 0.01 and one["p_equivalent"] < 0.01


def test_rows_alone_give_the_binomial_error():
    rows, draw = 400, np.random.default_rng(1)
    label = np.arange(rows) % 2
    guesses = {
        "arm": np.where(draw.random(rows) < 0.8, label, 1 - label), "base": label
    }  # fmt: skip
    frames = {
        cell: pd.DataFrame({"task": "a", "row": range(rows), "label": label, "prediction": g})
        for cell, g in guesses.items()
    }
    line = {"seed": 1, "task": "a", "metric": "accuracy", "cell": "arm", "base": "base"}
    gains = redrawn(pd.DataFrame([line, {**line, "seed": 2}]), frames)
    assert gains.shape == (2, 1, DRAWS)
    share = (guesses["arm"] == label).mean()
    assert gains[0].std() == pytest.approx(100 * (share * (1 - share) / rows) ** 0.5, rel=0.1)
    assert (gains[0] == gains[1]).all()  # the same rows for both seeds
