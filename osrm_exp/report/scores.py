"""Headline scores beside what they are measured against: expert, no adapter, floor.

A cell's references are the `individual` and `pretrained` rows of the same adapters under the same
heads. All scores are in percent, differences in points.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

SAME = ["setup", "heads", "experts", "task"]  # what a score and its references share
REFERENCES = {"individual": "expert", "pretrained": "bare"}
LOSS = "response_loss"  # nats a token of what was to be written: beside a headline, never one
REGRESSION = ("pearson", "spearman", "pearson_spearman")
CORRELATIONS = (*REGRESSION, "mcc")
LOPSIDED = 0.95  # share of one class from which predictions are called collapsed
MARKS = {
    "constant": ("*", "answers the same for every row (a correlation then counts as 0)"),
    "lopsided": ("†", "more than 95 % of the answers are one class"),
    "below": ("‡", "below the floor, what the task scores without knowing anything"),
    "negative": ("¶", "a correlation below zero: answers run against the labels; the average "
                      "takes it as it stands and bears the mark"),
    "unlearned": ("§", "the expert is within two standard errors of its floor: what a merge loses "
                       "or recovers of this task is noise"),
}  # fmt: skip
EDGE = ("^", "the search chose the edge of its grid")


def scores(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a cell and task.

    Returns:
        The headline rows with `value, floor, expert, bare, lost, kept, gain, adds, adds_se`, the
        `response_loss` of what is written, and a column of booleans for every one of `MARKS`. What
        cannot be known is NaN: references without rows, errors and floors without row counts.
        `recovered` is `gain / adds`.

    Raises:
        ValueError: one cell and task with two headline rows.
    """
    found = rows[rows.headline.astype(bool)].copy()
    twice = found.duplicated(["cell", "task", "split"])
    if twice.any():
        raise ValueError(f"cell {found[twice].cell.iloc[0]} has two headline rows for one task")
    for column, default in {"heads": "own", "rows": np.nan, "largest_share": np.nan}.items():
        found[column] = found[column].fillna(default) if column in found else default
    correlation = found.metric.isin(CORRELATIONS)
    floor = found["floor"] if "floor" in found else pd.Series(np.nan, found.index)
    found["floor"] = floor.astype(float).mask(correlation & floor.isna(), 0.0) * 100
    found["value"] *= 100
    losses = rows[rows.metric == LOSS].set_index(["cell", "task", "split"]).value
    found = found.join(losses.rename(LOSS), on=["cell", "task", "split"])
    found["experts"] = found.adapters.map(tuple)
    found["se"] = standard_error(found.value, correlation, found.rows.astype(float))
    return _marked(_derived(_with_references(found)))


def standard_error(value: pd.Series, correlation: pd.Series, rows: pd.Series) -> pd.Series:
    """Of a score in percent over `rows` rows: binomial, or Fisher's for a correlation.

    Binomial is the most that a mean of shares between 0 and 1 can have (ROUGE-L, a likelihood).
    """
    share = value.clip(0, 100) / 100
    binomial = np.sqrt(share * (1 - share) / rows)
    fisher = (1 - (value / 100) ** 2) / np.sqrt(rows - 1)
    return 100 * binomial.mask(correlation, fisher)


def _with_references(found: pd.DataFrame) -> pd.DataFrame:
    for merge, name in REFERENCES.items():
        of = found[found["merge"] == merge].drop_duplicates(SAME)
        of = of[[*SAME, "value", "se"]].rename(columns={"value": name, "se": f"{name}_se"})
        found = found.merge(of, how="left", on=SAME)
    return found


def _derived(found: pd.DataFrame) -> pd.DataFrame:
    found["lost"] = found.expert - found.value
    found["kept"] = 100 * found.value / found.expert.where(found.expert > 0)
    found["gain"] = found.value - found.bare
    found["adds"] = found.expert - found.bare
    found["adds_se"] = np.hypot(found.expert_se, found.bare_se)
    return found


def recovered(gain: pd.Series, adds: pd.Series, adds_se: pd.Series) -> pd.Series:
    """The share, in percent, of what adapters add that is left, where it is clear that they do."""
    return 100 * gain / adds.where(adds > 2 * adds_se)


def _marked(found: pd.DataFrame) -> pd.DataFrame:
    found["constant"] = found.degenerate.astype(bool)
    found["lopsided"] = (found.largest_share.astype(float) > LOPSIDED) & ~found.constant
    found["negative"] = found.metric.isin(REGRESSION) & (found.value < 0)
    found["below"] = (found.value < found.floor) & ~found.negative
    single = found["merge"] == "individual"
    found["unlearned"] = single & (found.value - found.floor <= 2 * found.se)
    return found
