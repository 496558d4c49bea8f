"""Scores of one task, by scikit-learn and SciPy.

Two conventions live in the literature that OSRM relies on: its released code selects and reports
accuracy for MRPC and QQP, EMR and MergeLM report the mean of accuracy and F1. Every metric is
recorded; a task's `headline` says which one the averages use.
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor

from osrm_exp.spec import Task

CLASSIFICATION = ("accuracy", "f1", "mcc", "accuracy_f1")
REGRESSION = ("pearson", "spearman", "pearson_spearman")


def metrics_of(task: Task) -> tuple[str, ...]:
    """Names of all metrics recorded for a task.

    Raises:
        ValueError: the headline is not one of them.
    """
    if not task.labels:
        names = REGRESSION
    else:
        names = CLASSIFICATION if len(task.labels) == 2 else ("accuracy", "mcc")
    if task.headline not in names:
        raise ValueError(f"{task.name}: headline {task.headline!r} is not one of {names}")
    return names


def scores(task: Task, logits: Tensor, labels: Tensor) -> tuple[dict[str, float], bool]:
    """All metrics of predictions, and whether the predictions are degenerate (all the same).

    Args:
        logits: `[row, output]`.
        labels: `[row]`, class indices or values.

    A correlation with a constant prediction is undefined; it scores 0.0 here and is flagged.
    """
    truth = labels.numpy()
    if not np.isfinite(logits.numpy()).all():
        raise ValueError(f"{task.name}: the model's outputs are not finite")
    if task.labels:
        guess = logits.argmax(dim=-1).numpy()
        values = _classification(truth, guess, binary=len(task.labels) == 2)
    else:
        guess = logits.squeeze(-1).numpy()
        values = _regression(truth, guess)
    degenerate = len(guess) > 1 and bool(np.ptp(guess) <= 1e-6 * np.abs(guess).max())
    return {name: values[name] for name in metrics_of(task)}, degenerate


def _classification(truth: np.ndarray, guess: np.ndarray, *, binary: bool) -> dict[str, float]:
    values = {
        "accuracy": float(accuracy_score(truth, guess)),
        "mcc": float(matthews_corrcoef(truth, guess)),
    }
    if binary:
        values["f1"] = float(f1_score(truth, guess, zero_division=0.0))
        values["accuracy_f1"] = (values["accuracy"] + values["f1"]) / 2
    return values


def _regression(truth: np.ndarray, guess: np.ndarray) -> dict[str, float]:
    with warnings.catch_warnings():  # constant input: SciPy warns and answers nan
        warnings.simplefilter("ignore")
        pearson, spearman = pearsonr(truth, guess)[0], spearmanr(truth, guess)[0]
    pearson, spearman = (float(np.nan_to_num(v)) for v in (pearson, spearman))
    return {
        "pearson": pearson,
        "spearman": spearman,
        "pearson_spearman": (pearson + spearman) / 2,
    }
