"""Scores of one task, by scikit-learn and SciPy.

Two conventions live in the literature that OSRM relies on: its released code selects and reports
accuracy for MRPC and QQP, EMR and MergeLM report the mean of accuracy and F1. Every metric is
recorded; a task's `headline` says which one the averages use.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor

from osrm_exp.spec import Task


@dataclass(frozen=True)
class Scored:
    """The predictions of a task on one split, measured.

    Args:
        values: every metric.
        floors: the same metrics of the best constant prediction (majority class, mean).
        degenerate: all predictions are the same; a correlation is then undefined and counts as 0.
        largest_share: of the rows, those with the most frequent prediction.
        predictions: `[row]`, class indices or values.
        labels: `[row]`, what they should be.
        rows: `[row]`, their numbers in the source.
    """

    values: dict[str, float]
    floors: dict[str, float]
    degenerate: bool
    largest_share: float
    predictions: np.ndarray
    labels: np.ndarray
    rows: Sequence[int]


def metrics_of(task: Task) -> tuple[str, ...]:
    """Names of all metrics recorded for a task.

    Raises:
        ValueError: the headline is not one of them.
    """
    names = task.kind.metrics(task)
    if task.headline not in names:
        raise ValueError(f"{task.name}: headline {task.headline!r} is not one of {names}")
    return names


def scores(task: Task, logits: Tensor, labels: Tensor, rows: Sequence[int] | None = None) -> Scored:
    """What a network's outputs on a split are worth.

    Args:
        task: whose metrics and labels count.
        logits: `[row, output]`.
        labels: `[row]`, class indices or values.
        rows: `[row]`, their numbers in the source; None counts them.

    Raises:
        ValueError: outputs that are not finite.
    """
    if not logits.isfinite().all():
        raise ValueError(f"{task.name}: the model's outputs are not finite")
    names, kind = metrics_of(task), task.kind
    guess, truth = kind.predict(logits).numpy(), labels.numpy()
    values = kind.measure(truth, guess)
    floors = kind.measure(truth, np.full_like(truth, kind.constant(truth)))
    counts = np.unique(guess, return_counts=True)[1]
    return Scored(
        {name: values[name] for name in names}, {name: floors[name] for name in names},
        degenerate=len(guess) > 1 and bool(np.ptp(guess) <= 1e-6 * np.abs(guess).max()),
        largest_share=float(counts.max() / len(guess)), predictions=guess, labels=truth,
        rows=range(len(guess)) if rows is None else rows,
    )  # fmt: skip


def classification(truth: np.ndarray, guess: np.ndarray) -> dict[str, float]:
    """Metrics of class indices `[row]`; F1 is of class 1, and means something for two classes."""
    accuracy = float(accuracy_score(truth, guess))
    f1 = float(f1_score(truth == 1, guess == 1, zero_division=0.0))
    mcc = float(matthews_corrcoef(truth, guess))
    return {"accuracy": accuracy, "mcc": mcc, "f1": f1, "accuracy_f1": (accuracy + f1) / 2}


def regression(truth: np.ndarray, guess: np.ndarray) -> dict[str, float]:
    """Correlations of values `[row]`; 0 where one is undefined."""
    pearson = spearman = 0.0
    if len(truth) > 1:
        with warnings.catch_warnings():  # constant input: SciPy warns and answers nan
            warnings.simplefilter("ignore")
            found = pearsonr(truth, guess)[0], spearmanr(truth, guess)[0]
        pearson, spearman = (float(np.nan_to_num(value)) for value in found)
    return {
        "pearson": pearson,
        "spearman": spearman,
        "pearson_spearman": (pearson + spearman) / 2,
    }
