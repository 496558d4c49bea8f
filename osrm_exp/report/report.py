"""Everything that is made from the rows of a results folder: tables, diagnostics, figures."""

from __future__ import annotations

from pathlib import Path

from osrm_exp.report.rows import read_rows
from osrm_exp.report.tables import write_tables

MEANS = (
    "Means over modules, tasks and seeds, by stage of training; definitions in "
    "`conf/diagnostics/layers.yaml`. own: a task's adapter on its own inputs; "
    "foreign: on another's."
)


def write_report(results: Path | str) -> str:
    """The tables of a results folder and, where there is evidence for them, figures.

    Raises:
        ValueError: no rows, or damaged ones.
    """
    results = Path(results)
    rows, searches = read_rows(results), read_rows(results, "searches")
    text = write_tables(results, rows, searches)
    if any((results / "diagnostics").glob("*.jsonl")):
        _diagnostics(results)
    return text


def _diagnostics(results: Path) -> None:
    from osrm_exp.diagnostics import summary, tidy  # torch and matplotlib: seconds to import
    from osrm_exp.report.figures import write_figures

    diagnostics = tidy(read_rows(results, "diagnostics"))
    table = summary(diagnostics).to_markdown(floatfmt=".3f")
    (results / "diagnostics.md").write_text(f"{table}\n\n{MEANS}\n")
    write_figures(results, diagnostics)
