"""What a table or a figure has to say of itself: protocol, metrics, averages, splits, seeds."""

from __future__ import annotations

import pandas as pd

from osrm_exp.report.scores import CORRELATIONS, EDGE, MARKS

LOST = "lost: points below the cell's own experts, one adapter a task."
NO_EXPERT = "lost is left out: it needs individual rows of the same adapters."
BOLD = (
    "Bold: the best merge with one result for all tasks, within a setup and its heads, of those "
    "with the most seeds."
)
RECOVERED = (
    "recovered: (merged − pretrained) / (individual − pretrained) of the averages, in percent, "
    "where the denominator exceeds twice its standard error."
)
UNKNOWN = (
    "recovered is left out: it needs pretrained and individual rows of the same adapters, row "
    "counts, and adapters that add more to the model than twice the error."
)


def caption(found: pd.DataFrame) -> str:
    """How these `scores` came about, in sentences."""
    weak = int((found.constant | found.lopsided).sum())
    return " ".join(
        [
            _protocol(found), _metrics(found), "average: mean over tasks, every task alike.",
            f"Seeds: {', '.join(str(s) for s in sorted(found.seed.unique()))}.",
            f"{weak} of {len(found)} scores come from answers of (almost) one class.",
            *_unpinned(found),
        ]
    )  # fmt: skip


def _unpinned(found: pd.DataFrame) -> list[str]:
    """What came from a hub and is named by no commit; rows of before this was said say nothing."""
    said = found.get("unpinned", [])
    names = sorted({name for one in said if isinstance(one, list) for name in one})
    return [f"Not pinned to a commit of the hub, and so it may move: {', '.join(names)}."] * bool(
        names
    )


def legend(shown: str) -> str:
    """The marks that a shown table bears."""
    signs = [*MARKS.values(), EDGE]
    return " ".join(f"{sign}: {meaning}." for sign, meaning in signs if sign in shown)


def _protocol(found: pd.DataFrame) -> str:
    said = []
    for protocol, group in found.groupby("protocol"):
        splits = [s for s in group.tuned_on.unique() if s != "none"]
        tuned = f"coefficients chosen on {' or '.join(splits)}" if splits else "nothing chosen"
        said.append(f"Protocol {protocol}: {tuned}, scores on {' or '.join(group.split.unique())}")
    return "; ".join(said) + "."


def _metrics(found: pd.DataFrame) -> str:
    of: dict[str, list[str]] = {}
    for metric, task in found[["metric", "task"]].drop_duplicates().itertuples(index=False):
        of.setdefault(metric, []).append(task)
    named = "; ".join(f"{metric} of {', '.join(tasks)}" for metric, tasks in of.items())
    note = ", a correlation times 100" if set(of) & set(CORRELATIONS) else ""
    return f"Scores in percent{note}: {named}."
