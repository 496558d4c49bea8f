"""Figures from rows alone, in `figures/` of a results folder, each with its caption.

`python -m osrm_exp.report DIR` draws those that there is evidence for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from osrm_exp.report.captions import caption
from osrm_exp.report.curves import OF, coefficient_curves, sweep_curves
from osrm_exp.report.frame import ORDER
from osrm_exp.report.plots import MOST, bar_plot, cost_plot, curve_plot

PLAIN: Any = {"svg.hashsalt": "osrm_exp", "svg.fonttype": "none"}  # the same rows, the same file
BAND = "Lines are means over seeds, bands reach from the lowest seed to the highest."
COST = "Average against the seconds that a merge takes; a point is a line of the table."
Drawn = Iterator[tuple[str, Figure, str]]


def figures(found: pd.DataFrame, searches: pd.DataFrame) -> Drawn:
    """Name, picture and caption of everything that these scores can show."""
    yield from _bars(found)
    for source, curves in {
        "tried": coefficient_curves(found, searches), "swept": sweep_curves(found)
    }.items():  # fmt: skip
        for (name, of), group in curves.groupby(["curve", "of"]) if len(curves) else ():
            what = f"{of[0].upper()}{of[1:]} against {name}, every value that {OF[source]}. {BAND}"
            y = of.removeprefix("average on ").replace(" ", "_")
            yield f"{source}_{name}_{y}".replace("/", "_"), curve_plot(group), what
    if "merge_seconds" in found and not found["merge"].isin(ORDER).all():
        yield "cost", cost_plot(found), COST


def _bars(found: pd.DataFrame) -> Drawn:
    setups = found.setup.nunique()
    for setup, group in found.groupby("setup", sort=False):
        if group.init.nunique() > MOST:
            continue  # no page holds it
        name = f"tasks_{setup}" if setups > 1 else "tasks"
        what = (
            "Every task's merged scores (bars), its expert (line), the same model without adapters "
            "(dotted line) and its floor (grey, where it is known); means over seeds. Of more than "
            f"{MOST} merges, the {MOST} best."
        )
        yield name, bar_plot(group), f"{what} Setup {setup}."


def write_figures(results: Path, found: pd.DataFrame, drawn: Drawn) -> list[Path]:
    """`figures/*.svg`, and their captions in `figures/README.md`; what that named before goes."""
    folder = results / "figures"
    folder.mkdir(exist_ok=True)
    page = folder / "README.md"
    former = re.findall(r"\]\((\w+\.svg)\)", page.read_text()) if page.exists() else []
    said, files = ["# Figures", caption(found)], []
    for name, figure, what in drawn:
        files.append(folder / f"{name}.svg")
        with rc_context(PLAIN):
            figure.savefig(files[-1], metadata={"Date": None})
        said += [f"## {name}", what, f"![{name}]({name}.svg)"]
    for name in {*former} - {file.name for file in files}:
        (folder / name).unlink(missing_ok=True)
    page.write_text("\n\n".join(said) + "\n")
    return files
