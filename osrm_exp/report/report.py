"""Everything that is made from the rows of a results folder: tables, diagnostics, figures."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from osrm_exp.report.rows import read_rows
from osrm_exp.report.scores import scores
from osrm_exp.report.tables import write_tables

if TYPE_CHECKING:
    from osrm_exp.report.figures import Drawn

MEANS = (
    "Means over modules, tasks and seeds, by stage of training; definitions in "
    "`conf/diagnostics/layers.yaml`. own: a task's adapter on its own inputs; "
    "foreign: on another's."
)


def write_report(results: Path | str, *, draw: bool = True) -> str:
    """The tables of a results folder and, where there is evidence for them, figures.

    Args:
        results: the folder that holds `rows/`.
        draw: figures too, which take seconds; not needed where no row is new.

    Raises:
        ValueError: no rows, or damaged ones.
    """
    results = Path(results)
    rows, searches = read_rows(results), read_rows(results, "searches")
    text = write_tables(results, rows, searches)
    if draw:
        _draw(results, rows, searches)
    return text


def _draw(results: Path, rows: pd.DataFrame, searches: pd.DataFrame) -> None:
    from osrm_exp.report.figures import figures, write_figures  # matplotlib: seconds to import

    found = scores(rows)
    drawn = figures(found, searches)
    if any((results / "diagnostics").glob("*.jsonl")):
        drawn = chain(drawn, _diagnostics(results))
    write_figures(results, found, drawn)


def _diagnostics(results: Path) -> Drawn:
    """Writes the means of a folder's diagnostics; returns their figures."""
    from osrm_exp.diagnostics import summary, tidy  # torch: seconds to import
    from osrm_exp.report.interference import interference

    diagnostics = tidy(read_rows(results, "diagnostics"))
    table = summary(diagnostics).to_markdown(floatfmt=".3f")
    (results / "diagnostics.md").write_text(f"{table}\n\n{MEANS}\n")
    return interference(diagnostics)
