"""Optuna's tree-structured Parzen estimator, with pruning."""

from __future__ import annotations

import warnings
from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from osrm_exp.search.problem import Found, Problem
from osrm_exp.search.ranges import extra, fits, kind, moves


def optuna(
    problem: Problem, /, *, trials: PositiveInt, startup: NonNegativeInt, prune: bool
) -> Found:
    """The best of so many trials; the first is the merge as it stands.

    A candidate is scored task by task; one whose mean over the tasks seen lies below the median of
    the trials before, at the same task, is given up. Akiba et al., KDD 2019, arXiv 1907.10902.

    Args:
        problem: numbers are drawn between the ends of what `space` lists, all else from the list.
        trials: how many points are proposed; one proposed twice is scored once.
        startup: trials drawn at random, none of which is pruned.
        prune: whether a candidate may be given up.
    """
    library = extra("optuna")
    moves(problem, "optuna")
    library.logging.set_verbosity(library.logging.WARNING)
    study = library.create_study(
        direction="maximize",
        sampler=library.samplers.TPESampler(seed=problem.seed, n_startup_trials=startup),
        pruner=library.pruners.MedianPruner(n_startup_trials=startup),
    )
    begun = {n: v for n, v in problem.start.items() if fits(problem.space[n], v)}
    study.enqueue_trial(begun, skip_if_exists=False)

    def objective(trial: Any) -> float:
        point = {name: _proposed(trial, name, values) for name, values in problem.space.items()}

        def stop(seen: int, mean: float) -> bool:
            trial.report(mean, seen)
            return trial.should_prune()

        score = problem.score(point, stop if prune else None)
        if score is None:
            raise library.TrialPruned
        trial.set_user_attr("point", point)
        return score

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="optuna")  # a start beyond a range, its own news
        study.optimize(objective, n_trials=trials)
    return problem.chosen(study.best_trial.user_attrs["point"])


def _proposed(trial: Any, name: str, values: tuple) -> Any:
    what = kind(values)
    if what is int:
        return trial.suggest_int(name, min(values), max(values))
    if what is float:
        return trial.suggest_float(name, min(values), max(values))
    return trial.suggest_categorical(name, values)
