"""The hierarchical bootstrap: what a mean difference would be with other seeds, tasks, rows."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

DRAWS, SEED = 2000, 0  # the same rows, the same interval
WHOLE = {  # metrics that are the mean of others
    "accuracy_f1": ["accuracy", "f1"], "pearson_spearman": ["pearson", "spearman"],
    "balanced_accuracy": ["refusal", "compliance"],
}  # fmt: skip


def hierarchical(gains: np.ndarray, delta: float, level: float) -> dict[str, float]:
    """Percentile interval of the mean when seeds and tasks, crossed, are drawn anew.

    Args:
        gains: `[seed, task, draw]`; a last axis of 1 keeps the rows, one of `DRAWS` redraws them.
        delta: half the width of the range that counts as equivalent.
        level: of the interval.
    """
    seeds, tasks, rows = gains.shape
    draw = np.random.default_rng(SEED)
    seed = draw.integers(seeds, size=(DRAWS, seeds, 1))
    task = draw.integers(tasks, size=(DRAWS, 1, tasks))
    row = np.arange(DRAWS)[:, None, None] % rows
    means = gains[seed, task, row].mean(axis=(1, 2))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return {
        "low": low, "high": high,
        "p": min(1.0, 2 * min(_share(means <= 0), _share(means >= 0))),
        "p_equivalent": max(_share(means <= -delta), _share(means >= delta)),
    }  # fmt: skip


def _share(draws: np.ndarray) -> float:
    """Never zero: as many draws say nothing about less than one of them."""
    return float((draws.sum() + 1) / (len(draws) + 1))


def redrawn(group: pd.DataFrame, answers: dict[str, pd.DataFrame]) -> np.ndarray:
    """The differences of a comparison, `[seed, task, draw]`, each draw with other reported rows.

    A row is drawn for both arms and for all seeds at once, as far as it is the same row.

    Args:
        group: `seed, task, metric, cell, base` of one comparison.
        answers: predictions by cell.

    Raises:
        ValueError: no row of a task that both cells predicted.
    """
    gains = {}
    for (seed, task), line in group.set_index(["seed", "task"]).iterrows():
        both = [_of(answers[cell], task) for cell in (line.cell, line.base)]
        arm, base = (b.loc[both[0].index.intersection(both[1].index)] for b in both)
        if arm.empty:
            raise ValueError(f"cells {line.cell} and {line.base} share no predicted row of {task}")
        weights = _weights(len(arm), str(task))
        gains[seed, task] = _scored(arm, weights, line.metric) - _scored(base, weights, line.metric)
    wide = pd.Series(gains).unstack()
    return np.stack([np.stack(list(line)) for line in wide.to_numpy()])


def _of(answers: pd.DataFrame, task: Any) -> pd.DataFrame:
    return answers[answers.task == task].set_index("row").sort_index()


@lru_cache(maxsize=8)
def _weights(rows: int, task: str) -> np.ndarray:
    """How often each row is drawn, `[draw, row]`: of one task the same for every seed and arm."""
    draw = np.random.default_rng([SEED, *task.encode()])
    return draw.multinomial(rows, np.full(rows, 1 / rows), size=DRAWS).astype(np.float32)


def _scored(answers: pd.DataFrame, weights: np.ndarray, metric: str) -> np.ndarray:
    """A metric in percent under every draw's weights, `[draw]`: all are functions of means."""
    label, guess = answers.label.to_numpy(float), answers.prediction.to_numpy(float)

    def mean(values: np.ndarray) -> np.ndarray:
        return weights @ values.astype(np.float32) / len(values)

    def spearman() -> np.ndarray:  # ranks among all rows, not anew in every draw
        ranks, others = (pd.Series(v).rank().to_numpy() for v in (label, guess))
        return correlation(ranks, others, mean)

    parts = {
        "accuracy": lambda: mean(label == guess), "f1": lambda: f1(label, guess, mean),
        "mcc": lambda: mcc(label, guess, mean), "spearman": spearman,
        "pearson": lambda: correlation(label, guess, mean),
        "refusal": lambda: recall(1, label, guess, mean),
        "compliance": lambda: recall(0, label, guess, mean),
        **dict.fromkeys(["exact_match", "rouge_l", "likelihood"], lambda: mean(guess)),
    }  # fmt: skip
    return 100 * np.mean([parts[name]() for name in WHOLE.get(metric, [metric])], axis=0)


def correlation(x: np.ndarray, y: np.ndarray, mean: Any) -> np.ndarray:
    """Pearson's correlation, from weighted means; 0 where one of the two is constant."""
    x, y = x - x.mean(), y - y.mean()
    mx, my = mean(x), mean(y)
    scale = np.sqrt(np.clip((mean(x**2) - mx**2) * (mean(y**2) - my**2), 0, None))
    return _ratio(mean(x * y) - mx * my, np.where(scale > 1e-12, scale, 0))


def f1(label: np.ndarray, guess: np.ndarray, mean: Any) -> np.ndarray:
    """F1 of class 1, from weighted means."""
    return _ratio(2 * mean((label == 1) * (guess == 1)), mean(label == 1) + mean(guess == 1))


def recall(of: int, label: np.ndarray, guess: np.ndarray, mean: Any) -> np.ndarray:
    """The share of a class that is found, from weighted means."""
    return _ratio(mean((label == of) * (guess == of)), mean(label == of))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def mcc(label: np.ndarray, guess: np.ndarray, mean: Any) -> np.ndarray:
    """Matthews' correlation of any number of classes (Gorodkin 2004), from weighted means."""
    classes = np.union1d(label, guess)
    truths, guesses = ([mean(v == c) for c in classes] for v in (label, guess))
    covariance = mean(label == guess) - sum(t * g for t, g in zip(truths, guesses))
    scale = np.sqrt((1 - sum(t * t for t in truths)) * (1 - sum(g * g for g in guesses)))
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-6)
