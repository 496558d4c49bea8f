"""Scores of one task, by scikit-learn and SciPy.

Two conventions live in the literature that OSRM relies on: its released code selects and reports
accuracy for MRPC and QQP, EMR and MergeLM report the mean of accuracy and F1. Every metric is
recorded; a task's `headline` says which one the averages use.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor

from osrm_exp.spec import Task

Measure = Callable[[np.ndarray, np.ndarray], dict[str, float]]
BESIDE = ("bleu", "response_loss", "unfinished", "unread")  # of written answers, never a headline


@dataclass(frozen=True)
class Scored:
    """The predictions of a task on one split, measured.

    Args:
        values: every metric.
        floors: the same metrics of the best constant prediction (majority class, mean), None where
            there is none.
        degenerate: all predictions are the same; a correlation is then undefined and counts as 0.
        largest_share: of the rows, those with the most frequent prediction.
        predictions: `[row]`, class indices or values; of texts, each one's share of the headline.
        labels: `[row]`, what they should be.
        rows: `[row]`, their numbers in the source.
    """

    values: dict[str, float]
    floors: Mapping[str, float | None]
    degenerate: bool
    largest_share: float
    predictions: np.ndarray
    labels: np.ndarray
    rows: Sequence[int]


def metrics_of(task: Task) -> tuple[str, ...]:
    """Names of all metrics recorded for a task.

    Raises:
        ValueError: the headline is not one of them, or no score that tables can lead with.
    """
    names = task.kind.metrics(task)
    if task.headline in BESIDE:
        raise ValueError(
            f"{task.name}: headline {task.headline!r} is recorded beside a headline, which is a "
            f"mean over rows and better when higher; choose among "
            f"{', '.join(name for name in names if name not in BESIDE)}"
        )
    if task.headline not in names:
        raise ValueError(f"{task.name}: headline {task.headline!r} is not one of {names}")
    return names


def scores(task: Task, outputs: Any, right: Any, rows: Sequence[int] | None = None) -> Scored:
    """What a network's answers on a split are worth.

    Args:
        task: whose metrics and labels count.
        outputs: `[row, output]` of a head, or what was written, as the task's kind has it.
        right: `[row]`, class indices, values or references.
        rows: `[row]`, their numbers in the source; None counts them.

    Raises:
        ValueError: outputs that are not finite.
    """
    metrics_of(task)
    return task.kind.score(task, outputs, right, range(len(right)) if rows is None else rows)


def of_head(
    task: Task, logits: Tensor, labels: Tensor, rows: Sequence[int], *,
    predict: Callable[[Tensor], Tensor], measure: Measure, constant: Callable[[np.ndarray], float],
) -> Scored:  # fmt: skip
    """The scores of a head.

    Args:
        task: whose metrics count.
        logits: `[row, output]`.
        labels: `[row]`, class indices or values.
        rows: `[row]`, their numbers in the source.
        predict: outputs as predictions `[row]`.
        measure: metrics of labels and predictions.
        constant: the best prediction that knows the labels and no input; it is the floor.
    """
    if not logits.isfinite().all():
        raise ValueError(f"{task.name}: the model's outputs are not finite")
    names = task.kind.metrics(task)
    guess, truth = predict(logits).numpy(), labels.numpy()
    values, floors = measure(truth, guess), measure(truth, np.full_like(truth, constant(truth)))
    counts = np.unique(guess, return_counts=True)[1]
    return Scored(
        {name: values[name] for name in names}, {name: floors[name] for name in names},
        degenerate=len(guess) > 1 and bool(np.ptp(guess) <= 1e-6 * np.abs(guess).max()),
        largest_share=float(counts.max() / len(guess)), predictions=guess, labels=truth, rows=rows,
    )  # fmt: skip


def of_classes(count: int) -> tuple[str, ...]:
    """Names of the metrics of so many classes."""
    return ("accuracy", "f1", "mcc", "accuracy_f1") if count == 2 else ("accuracy", "mcc")


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
