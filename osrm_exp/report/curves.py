"""How a score moves with a coefficient, with OSRM's samples, with the number of tasks.

All curves are tidy rows `curve, merge, init, x, seed, y, of`: what is on the x axis, where it
stands, and what `y` is. Nothing is averaged but the tasks of a suite.
"""

from __future__ import annotations

import re
from numbers import Real

import pandas as pd

from osrm_exp.report.frame import ORDER

LEAST = 2  # points of a curve
SAMPLES = re.compile(r"\s*\S*\bsamples=(\d+)")


def coefficient_curves(found: pd.DataFrame, searches: pd.DataFrame) -> pd.DataFrame:
    """Every candidate that a search tried, on the split that chose.

    Of two coefficients each has its curve, at the best of the other.

    Args:
        found: what `scores` makes of rows.
        searches: `cell, point, score, split`, a row a candidate.
    """
    searches = searches[searches.score.notna()] if len(searches) else searches
    if "rows" in searches:
        searches = searches[searches.rows.isna()]  # the others saw a part of the split
    if searches.empty:  # a step of a gradient, a candidate that was given up
        return pd.DataFrame()
    cells = found.drop_duplicates("cell").set_index("cell")
    tried = [
        {"curve": name, "cell": cell, "x": float(x), "y": 100 * score, "of": f"average on {split}"}
        for cell, point, score, split in searches[["cell", "point", "score", "split"]].to_numpy()
        for name, x in point.items()
        if isinstance(x, Real) and not isinstance(x, bool) and cell in cells.index
    ]
    if not tried:
        return pd.DataFrame()
    best = pd.DataFrame(tried).groupby(["curve", "cell", "x", "of"], as_index=False).y.max()
    best = best.join(cells[["merge", "space", "init", "setup", "seed"]], on="cell")
    return _long_enough(best)


def sweep_curves(found: pd.DataFrame) -> pd.DataFrame:
    """Averages of cells that differ in one number: a setting, `samples=` of an init, the tasks."""
    suite = found.groupby("setup").task.nunique()
    keys = ["cell", "merge", "space", "init", "setup", "seed"]
    cells = found.groupby(keys, as_index=False).agg(
        y=("value", "mean"), lost=("lost", "mean"), tasks=("task", "nunique")
    )
    cells = cells[cells.tasks == suite[cells.setup].to_numpy()]
    first = found.drop_duplicates("cell").set_index("cell")
    cells["given"] = [
        {k: v for k, v in first.settings[c].items() if k not in first.chosen[c]} for c in cells.cell
    ]
    curves = [_settings(cells), _samples(cells), _tasks(cells)]
    long = [_long_enough(c) for c in curves if not c.empty]
    return pd.concat(long, ignore_index=True) if long else pd.DataFrame()


def _settings(cells: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {**cell, "curve": name, "x": float(x), "of": "average", "rest": repr(
            sorted((k, repr(v)) for k, v in cell["given"].items() if k != name))}
        for cell in cells.to_dict("records") for name, x in cell["given"].items()
        if isinstance(x, Real) and not isinstance(x, bool)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _samples(cells: pd.DataFrame) -> pd.DataFrame:
    number = cells.init.str.extract(SAMPLES)[0].astype(float)
    init = cells.init.str.replace(SAMPLES, "", regex=True)
    rest = cells.given.map(repr)
    table = cells.assign(curve="samples", x=number, init=init, of="average", rest=rest)
    return table[number.notna()]


def _tasks(cells: pd.DataFrame) -> pd.DataFrame:
    merged = cells[~cells["merge"].isin(ORDER) & cells.lost.notna()]
    return merged.assign(
        curve="tasks", x=merged.tasks.astype(float), y=merged.lost, of="points lost",
        rest=merged.given.map(repr), seed=merged.setup + merged.seed.astype(str), setup="",
    )  # fmt: skip


def _long_enough(curves: pd.DataFrame) -> pd.DataFrame:
    """Without those that are points."""
    columns = ["curve", "setup", "merge", "space", "init", "x", "seed", "y", "of"]
    alike = ["curve", "setup", "merge", "space", "init", "of", *({"rest"} & set(curves))]
    curves = curves[curves.groupby(alike).x.transform("nunique") >= LEAST]
    return curves[columns].sort_values("x", kind="stable", ignore_index=True)
