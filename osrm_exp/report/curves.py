"""How a score moves with a coefficient, with OSRM's samples, with the number of tasks.

All curves are tidy rows `curve, merge, init, arm, x, seed, y, of`: what is on the x axis, where it
stands, and what `y` is. An arm is an init with what else tells a curve of its merge from others.
Nothing is averaged but the tasks of a suite.
"""

from __future__ import annotations

import re
from numbers import Real
from typing import Any

import pandas as pd

from osrm_exp.report.frame import ORDER, apart, parts
from osrm_exp.report.rows import lowered

OF = {"tried": "as many seeds tried as any", "swept": "was swept"}  # every value that …
LEAST = 2  # points of a curve
SAMPLES = re.compile(r"\s*\S*\bsamples=(\d+)")


def coefficient_curves(found: pd.DataFrame, searches: pd.DataFrame) -> pd.DataFrame:
    """Every candidate that a search tried, on the split that chose.

    A value that fewer seeds tried than others is left out: a search goes on where that pays.
    Of two coefficients each has its curve, at the best of the other, where a grid tried several of
    the other; what an optimiser proposed has its values once each, and no curve of one of them.

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
    cells["rest"] = parts(cells)
    columns = searches[["cell", "point", "score", "split"]].to_numpy()
    tried = [
        {"curve": name, "cell": cell, "x": float(x), **_y(cells.loc[cell], score, split)}
        for cell, point, score, split in columns if cell in cells.index
        for name, x in point.items() if isinstance(x, Real) and not isinstance(x, bool)
    ]  # fmt: skip
    if not tried:
        return pd.DataFrame()
    every = pd.DataFrame(tried)
    varied = every[every.groupby(["cell", "curve"]).x.transform("nunique") >= LEAST]
    alone = varied.groupby("cell").curve.transform("nunique") == 1
    keys = ["curve", "cell", "x", "of"]
    several = varied.groupby(keys).y.transform("size") > 1
    best = varied[alone | several.groupby([varied.cell, varied.curve]).transform("all")]
    best = best.groupby(keys, as_index=False).y.max()
    best = best.join(cells[["merge", "space", "init", "setup", "seed", "rest"]], on="cell")
    return _long_enough(_of_all_seeds(best))


def _of_all_seeds(curves: pd.DataFrame) -> pd.DataFrame:
    """The values of an arm that as many seeds have as any of its values."""
    keys = ["curve", "of", "setup", "merge", "space", "init"]
    arm = [*(curves[key] for key in keys), curves.rest.map(" ".join)]
    seeds = curves.groupby([*arm, curves.x]).seed.transform("nunique")
    return curves[seeds == seeds.groupby(arm).transform("max")]


def _y(cell: pd.Series, score: float, split: str) -> dict[str, Any]:
    """A score in percent; what an objective is, the lower the better, has its own unit and name."""
    if objective := lowered(cell):
        return {"y": score, "of": f"minus {objective} on {split}"}
    return {"y": 100 * score, "of": f"average on {split}"}


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
    cells["rest"] = cells.cell.map(parts(first))
    curves = [_settings(cells), _samples(cells), _tasks(cells)]
    long = [_long_enough(c) for c in curves if not c.empty]
    return pd.concat(long, ignore_index=True) if long else pd.DataFrame()


def _settings(cells: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {**cell, "curve": name, "x": float(x), "of": "average",
         "rest": [word for word in cell["rest"] if not word.startswith(f"{name}=")]}
        for cell in cells.to_dict("records") for name, x in cell["given"].items()
        if isinstance(x, Real) and not isinstance(x, bool)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _samples(cells: pd.DataFrame) -> pd.DataFrame:
    number = cells.init.str.extract(SAMPLES)[0].astype(float)
    init = cells.init.str.replace(SAMPLES, "", regex=True)
    table = cells.assign(curve="samples", x=number, init=init, of="average")
    return table[number.notna()]


def _tasks(cells: pd.DataFrame) -> pd.DataFrame:
    merged = cells[~cells["merge"].isin(ORDER) & cells.lost.notna()]
    return merged.assign(
        curve="tasks", x=merged.tasks.astype(float), y=merged.lost, of="points lost",
        seed=merged.setup + merged.seed.astype(str), setup="",
    )  # fmt: skip


def _long_enough(curves: pd.DataFrame) -> pd.DataFrame:
    """Without those that are points."""
    panel = ["curve", "of", "setup", "merge", "space"]
    curves = curves.assign(line=curves.rest.map(" ".join)).reset_index(drop=True)
    points = curves.groupby([*panel, "init", "line"]).x.transform("nunique")
    curves = curves[points >= LEAST]
    own = apart(curves.rest, [curves[key] for key in panel])
    curves = curves.assign(arm=(curves.init + " " + own).str.strip())
    columns = ["curve", "setup", "merge", "space", "init", "arm", "x", "seed", "y", "of"]
    return curves[columns].sort_values("x", kind="stable", ignore_index=True)
