"""`python -m osrm_exp.dashboard results/EXPERIMENT` writes one HTML page that needs no network.

Made from rows alone, like the tables: what merging keeps, seed by seed and task by task, curves of
coefficients, interference, cost. Plotly's script is in the page. Who is logged in to wandb gets the
same there: a workspace over the experiment's runs (`logger=wandb`) and a report.
"""

from __future__ import annotations

import argparse
import html
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from osrm_exp.report.captions import caption
from osrm_exp.report.frame import ORDER, SUMMARY, lines
from osrm_exp.report.rows import no_rows, read_rows
from osrm_exp.report.scores import scores
from osrm_exp.report.tables import best, emphasis, footnote, score_columns, shown, title
from osrm_exp.status import unfinished

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1280px; padding: 1.5em;
       color: #1a1a1a; background: #fff; }
h1 { margin-bottom: 0; } h2 { margin-top: 2em; }
.note { color: #555; max-width: 62em; }
pre { white-space: pre-wrap; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: 3px 9px; text-align: left; white-space: nowrap; }
td { border-bottom: 1px solid #e4e4e4; }
th { border-bottom: 2px solid #333; } td.number { text-align: right; }
td.best { font-weight: 700; background: #e8f3e8; } tr.reference { color: #777; }
"""


def write_dashboard(results: Path | str) -> Path:
    """`dashboard.html` in a results folder.

    Raises:
        ValueError: no rows, damaged ones, or plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs

        from osrm_exp.report.charts import charts
    except ImportError:
        raise ValueError("a dashboard needs plotly: pip install plotly") from None
    results = Path(results)
    rows, searches = read_rows(results), read_rows(results, "searches")
    if rows.empty:
        raise ValueError(no_rows(results))
    found = scores(rows)
    name = html.escape(title(results, found))
    parts = [f"<h1>{name}</h1><p class=note>{html.escape(caption(found))}</p>"]
    parts.append(f"<h2>Merged against single</h2>{_table(found, searches)}")
    parts.append(_lacking(results))
    diagnostics = read_rows(results, "diagnostics")
    for head, note, chart in charts(found, searches, diagnostics):
        parts.append(f"<h2>{html.escape(head)}</h2><p class=note>{html.escape(note)}</p>{chart}")
    page = results / "dashboard.html"
    page.write_text(
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{name}</title>"
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body>{''.join(parts)}</body></html>\n"
    )
    return page


def _lacking(results: Path) -> str:
    """What the sweep has not done, failed cells with their reasons; the page may go anywhere."""
    if not (said := unfinished(results)):
        return ""
    from osrm_exp.loggers import public  # lightning: seconds to import

    lines = public(said.replace(str(results), results.name).splitlines())
    return f"<h2>Not complete</h2><pre class=note>{html.escape(chr(10).join(lines))}</pre>"


def send(results: Path | str, *, project: str, entity: str | None = None) -> list[str]:
    """A wandb workspace and a report of an experiment's runs; returns where they are.

    What a run could not know when its cell ended, because the cells that it is measured against
    came later, is told to it now.

    Raises:
        ValueError: wandb-workspaces is not installed.
    """
    import wandb

    try:
        from osrm_exp.report import workspace
    except ImportError:
        raise ValueError(
            "a workspace needs wandb-workspaces: pip install wandb-workspaces"
        ) from None
    from osrm_exp.logged import summary

    rows, searches = read_rows(results), read_rows(results, "searches")
    api = wandb.Api()
    where: dict[str, Any] = {"entity": entity or api.default_entity, "project": project}
    sent: list[str] = []
    for group in rows.experiment.unique():
        for run in api.runs(f"{where['entity']}/{project}", {"group": group}):
            cell = run.config.get("cell", {}).get("cell")
            if cell in set(rows.cell) and run.state == "finished":
                run.summary.update(summary(rows, cell))
        found = scores(rows[rows.experiment == group])
        made = [workspace.workspace, workspace.report]
        sent += [one(str(group), found, searches, **where).save().url for one in made]
    return sent


def _logged_in() -> bool:
    import wandb

    return os.environ.get("WANDB_MODE", "online") == "online" and wandb.login(prompt=False)


def _table(found: pd.DataFrame, searches: pd.DataFrame) -> str:
    table = lines(found, searches)
    text, notes = shown(table)
    text = _ordered(text)
    bold, numbers = best(table), score_columns(table, text)
    head = "".join(f"<th>{html.escape(str(c))}</th>" for c in text)
    kinds = {c: bold[c].map({True: "number best", False: "number"}) for c in numbers}
    body = []
    for i in text.index:
        classes = [kinds[c][i] if c in kinds else "" for c in text]
        kind = " class=reference" if table.at[i, "merge"] in ORDER else ""
        body.append(f"<tr{kind}>{_cells(classes, text.loc[i])}</tr>")
    note = html.escape(footnote(found, text, notes) + emphasis(table))
    return (
        f"<div class=wide><table><tr>{head}</tr>{''.join(body)}</table></div><p class=note>{note}"
    )


def _ordered(text: pd.DataFrame) -> pd.DataFrame:
    """What a reader looks for stands before the tasks."""
    first = ["init", "merge", "settings", "seeds", *(c for c in text if c in SUMMARY)]
    return text[[*(c for c in first if c in text), *(c for c in text if c not in first)]]


def _cells(classes: Iterable[str], values: Iterable[Any]) -> str:
    pairs = zip(classes, values)
    return "".join(f"<td class='{kind}'>{html.escape(str(value))}" for kind, value in pairs)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser("python -m osrm_exp.dashboard", description=__doc__)
    parser.add_argument("results", help="a results folder, with rows/ in it")
    parser.add_argument(
        "--project", default="osrm_exp", help="in wandb, where somebody is logged in"
    )
    parser.add_argument("--entity", help="in wandb; default: that of the account")
    given = parser.parse_args()
    try:
        print(write_dashboard(given.results))
        if not _logged_in():
            print("nobody is logged in to wandb (`wandb login`): no workspace, no report")
            return
        print(*send(given.results, project=given.project, entity=given.entity), sep="\n")
    except ValueError as error:
        sys.exit(f"osrm_exp: {error}")


if __name__ == "__main__":
    main()
