"""Arms against a baseline arm, task by task and seed by seed: what a table of averages cannot say.

Two arms of one seed see the same rows in the same order and start from the same heads, so their
difference has less noise than either score. Compared is only what agrees in setup, merge, space,
heads and settings (but for those that were searched: each arm has its own), over the same tasks
and seeds. `python -m osrm_exp.report DIR --baseline INIT` prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from osrm_exp.report.bootstrap import hierarchical
from osrm_exp.report.frame import ORDER, natural, text
from osrm_exp.report.scores import scores

ALIKE = ["setup", "merge", "space", "heads", "settings"]  # of two arms that are compared
LEVEL, POWER = 0.95, 0.8
UNITS = {  # of an interval, and what it is conditional on
    "seed": "these tasks and their reported rows; the seed is drawn (paired t over seeds)",
    "task": "these seeds, averaged; the task is drawn from many alike (paired t over tasks)",
    "seed, task": "the reported rows; seeds and tasks are redrawn (hierarchical bootstrap, too "
                  "narrow with a handful of seeds)",
    "seed, task, row": "nothing but the setup; seeds, tasks and reported rows are redrawn "
                       "(hierarchical bootstrap, too narrow with a handful of seeds)",
}  # fmt: skip

NOTHING = dict.fromkeys(["low", "high", "p", "p_equivalent", "detectable"], float("nan"))


def differences(rows: pd.DataFrame, baseline: str) -> tuple[pd.DataFrame, list[str]]:
    """Every other init minus `baseline`, in points: one line a comparison, seed and task.

    Returns:
        `[*ALIKE, init, seed, task, gain, cell, base]`, with the digests of both cells, for the
        seeds in which both arms have every task of the suite; and what was left out, in words.

    Raises:
        ValueError: no such init, or two cells of one arm that nothing tells apart.
    """
    found = scores(rows)
    if baseline not in set(found.init):
        known = ", ".join(sorted(set(found.init), key=natural))
        raise ValueError(f"no rows of init {baseline!r}; there are: {known}")
    found["settings"] = [
        text({k: v for k, v in sorted(settings.items()) if k not in chosen})
        for settings, chosen in zip(found.settings, found.chosen)
    ]
    key = [*ALIKE, "seed", "task"]
    twice = found[found.duplicated([*key, "init"])]
    if not twice.empty:
        one = twice.iloc[0]
        raise ValueError(
            f"two cells of init {one.init}, one of them {one.cell}, differ by neither merge, "
            "settings nor seed: compare them in folders of their own"
        )
    arms = found[[*key, "init", "value", "metric", "cell"]]
    base = arms[arms.init == baseline].drop(columns=["init", "metric"])
    pairs = arms[arms.init != baseline].merge(base, "outer", key, suffixes=("", "_base"))
    pairs["gain"] = pairs.value - pairs.value_base
    return _complete(pairs, found, baseline)


def _complete(
    pairs: pd.DataFrame, found: pd.DataFrame, baseline: str
) -> tuple[pd.DataFrame, list[str]]:
    suite = found.groupby("setup").task.nunique()
    arms = pairs[[*ALIKE, "init"]].dropna().drop_duplicates()
    wanted = arms.merge(pairs[[*ALIKE, "seed"]].drop_duplicates())
    tasks = pairs.groupby([*ALIKE, "init", "seed"]).gain.count()
    tasks = tasks.reindex(pd.MultiIndex.from_frame(wanted), fill_value=0)
    whole = tasks.eq(suite[tasks.index.get_level_values("setup")].to_numpy())
    missing = [
        f"{' '.join(x for x in (merge, space, settings, init) if x)}, seed {seed}: "
        f"{count} tasks in common with {baseline}"
        for (_, merge, space, _, settings, init, seed), count in tasks[~whole].items()
    ]
    kept = pairs.merge(whole[whole].rename("whole").reset_index())
    kept = kept.rename(columns={"cell_base": "base"})
    return kept[[*ALIKE, "init", "seed", "task", "metric", "gain", "cell", "base"]], missing


def paired(
    rows: pd.DataFrame, baseline: str, *, delta: float, predictions: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The mean difference of every comparison, with one line a unit that is taken as drawn.

    Args:
        rows: of all cells, as `read_rows` gives them.
        baseline: the init that the others are compared with.
        delta: arms that differ by less, in points, count as equivalent.
        predictions: of the cells, from `read_predictions`; with them rows are redrawn too.

    Returns:
        `[*ALIKE, init, unit, difference, low, high, p, p_holm, p_equivalent, detectable, seeds,
        tasks]`. No interval from one seed. Holm's correction is over the comparisons of merged
        models with one unit, and apart over those of the references. `p_equivalent` is the larger
        of two one-sided tests at ±delta; `detectable` the difference that a test of this spread
        and size sees in four of five cases.
    """
    gains, _ = differences(rows, baseline)
    answers = {} if predictions is None else dict(iter(predictions.groupby("cell")))
    found = [
        {**dict(zip([*ALIKE, "init"], names)), **summary}
        for names, group in gains.groupby([*ALIKE, "init"], sort=False)
        for summary in _summaries(group, delta, answers)
    ]
    table = pd.DataFrame(found)
    if table.empty:
        return table
    family = [table.unit, table["merge"].isin(ORDER)]
    table.insert(table.columns.get_loc("p") + 1, "p_holm", table.groupby(family).p.transform(_holm))
    keys = [[natural(v) for v in table[c]] for c in (*ALIKE, "init")]
    order = sorted(table.index, key=lambda i: [key[i] for key in keys])
    return table.loc[order].reset_index(drop=True)


def _summaries(group: pd.DataFrame, delta: float, answers: dict) -> Iterator[dict[str, Any]]:
    wide = group.pivot(index="seed", columns="task", values="gain")
    size = {"difference": wide.to_numpy().mean(), "seeds": len(wide), "tasks": wide.shape[1]}
    units: dict[str, Callable[[], dict]] = {
        "seed": lambda: _student(wide.mean(axis=1), delta),
        "task": lambda: _student(wide.mean(axis=0), delta),
        "seed, task": lambda: hierarchical(wide.to_numpy()[..., None], delta, LEVEL),
    }
    if answers.keys() >= {*group.cell, *group.base}:
        from osrm_exp.report.bootstrap import redrawn

        units["seed, task, row"] = lambda: hierarchical(redrawn(group, answers), delta, LEVEL)
    for unit, test in units.items():
        yield {"unit": unit, **size, **NOTHING, **(test() if len(wide) > 1 else {})}


def _student(gains: pd.Series, delta: float) -> dict[str, float]:
    """A paired t test, its interval, and two one-sided tests at ±delta; none without spread."""
    if len(gains) < 2 or np.ptp(gains.to_numpy()) == 0:
        return {}
    test = ttest_1samp(gains, 0)
    interval = test.confidence_interval(LEVEL)
    size = TTestPower().solve_power(nobs=len(gains), alpha=1 - LEVEL, power=POWER)
    return {
        "low": interval.low, "high": interval.high, "p": test.pvalue,
        "p_equivalent": DescrStatsW(gains).ttost_mean(-delta, delta)[0],
        "detectable": float(np.squeeze(size)) * gains.std(),
    }  # fmt: skip


def _holm(p: pd.Series) -> pd.Series:
    found = p.copy()
    known = p.notna()
    if known.any():
        found[known] = multipletests(p[known], method="holm")[1]
    return found
