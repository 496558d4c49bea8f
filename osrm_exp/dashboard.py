"""`python -m osrm_exp.dashboard results/EXPERIMENT` writes one HTML page that needs no network.

Made from rows alone, like the tables: what merging keeps, seed by seed and task by task, curves of
coefficients, interference, cost. Plotly's script is in the page.
"""

from __future__ import annotations

import argparse
import html
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from osrm_exp.report.captions import caption
from osrm_exp.report.curves import coefficient_curves, sweep_curves
from osrm_exp.report.frame import ORDER, lines, natural
from osrm_exp.report.rows import read_rows
from osrm_exp.report.scores import scores
from osrm_exp.report.tables import best, footnote, score_columns, shown

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1280px; padding: 1.5em;
       color: #1a1a1a; background: #fff; }
h1 { margin-bottom: 0; } h2 { margin-top: 2em; }
.note { color: #555; max-width: 62em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: 3px 9px; text-align: left; white-space: nowrap; border-bottom: 1px solid #e4e4e4; }
th { border-bottom: 2px solid #333; } td.number { text-align: right; }
td.best { font-weight: 700; background: #e8f3e8; } tr.reference { color: #777; }
"""


def write_dashboard(results: Path | str) -> Path:
    """`dashboard.html` in a results folder.

    Raises:
        ValueError: no rows, damaged ones, or plotly is not installed.
    """
    results = Path(results)
    rows, searches = read_rows(results), read_rows(results, "searches")
    if rows.empty:
        raise ValueError(f"{results}/rows holds no rows yet")
    found = scores(rows)
    name = html.escape(results.name)
    parts = [f"<h1>{name}</h1><p class=note>{html.escape(caption(found))}</p>"]
    parts.append(f"<h2>Merged against single</h2>{_table(found, searches)}")
    diagnostics = read_rows(results, "diagnostics")
    for title, note, chart in _charts(found, searches, diagnostics):
        parts.append(f"<h2>{html.escape(title)}</h2><p class=note>{html.escape(note)}</p>{chart}")
    page = results / "dashboard.html"
    page.write_text(
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{name}</title>"
        f"<style>{STYLE}</style>{_script()}</head><body>{''.join(parts)}</body></html>\n"
    )
    return page


def _table(found: pd.DataFrame, searches: pd.DataFrame) -> str:
    table = lines(found, searches)
    text, notes = shown(table)
    bold, numbers = best(table), score_columns(table, text)
    head = "".join(f"<th>{html.escape(str(c))}</th>" for c in text)
    body = []
    for i in text.index:
        cells = [
            f"<td class='{'number' if c in numbers else ''}"
            f"{' best' if c in numbers and bold.at[i, c] else ''}'>{html.escape(str(text.at[i, c]))}"
            for c in text
        ]
        kind = " class=reference" if table.at[i, "merge"] in ORDER else ""
        body.append(f"<tr{kind}>{''.join(cells)}</tr>")
    note = html.escape(footnote(found, text, notes))
    return (
        f"<div class=wide><table><tr>{head}</tr>{''.join(body)}</table></div><p class=note>{note}"
    )


Charts = Iterator[tuple[str, str, str]]


def _charts(found: pd.DataFrame, searches: pd.DataFrame, diagnostics: pd.DataFrame) -> Charts:
    """Title, note and HTML of every chart that there is evidence for."""
    averages = _averages(found)
    yield (
        "Average by merge", "Every seed is a point; grey: the model without adapters, the experts.",
        _scatter(averages, x="merge", y="average", color="init", hover=["seed", "settings"]),
    )  # fmt: skip
    yield (
        "Task by task", "Means over seeds. Click on a merge in the legend to hide it.",
        _bars(found),
    )  # fmt: skip
    for source, curves in {
        "tried": coefficient_curves(found, searches), "swept": sweep_curves(found)
    }.items():  # fmt: skip
        for (name, of), group in curves.groupby(["curve", "of"]) if len(curves) else ():
            title = f"{of[0].upper()}{of[1:]} against {name}"
            yield title, f"Every value that was {source}; means over seeds.", _lines(group)
    if not diagnostics.empty:
        yield from _interference(diagnostics)
    if "merge_seconds" in found:
        costs = found.groupby("cell").merge_seconds.first()
        timed = averages.assign(seconds=averages.cell.map(costs))
        chart = _scatter(timed, x="seconds", y="average", color="merge", hover=["init", "seed"])
        yield "Average against cost", "Seconds of one merge.", chart


def _averages(found: pd.DataFrame) -> pd.DataFrame:
    keys = ["cell", "merge", "init", "seed"]
    table = found.groupby(keys, as_index=False).agg(average=("value", "mean"))
    settings = found.drop_duplicates("cell").set_index("cell").settings
    table["settings"] = table.cell.map(settings).map(str)
    order = table.groupby("merge").average.mean()
    table["place"] = table["merge"].map(order)
    return table.sort_values(["place", "init"], key=None, kind="stable")


def _figure(height: int = 420):
    from plotly.graph_objects import Figure

    return Figure(layout={
        "template": "plotly_white", "height": height, "margin": {"l": 60, "r": 20, "t": 30, "b": 50},
    })  # fmt: skip


def _html(figure) -> str:
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})


def _scatter(table: pd.DataFrame, *, x: str, y: str, color: str, hover: list[str]) -> str:
    figure = _figure()
    for name in sorted(table[color].unique(), key=natural):
        group = table[table[color] == name]
        said = group[hover].astype(str).agg(", ".join, axis=1)
        figure.add_scatter(
            x=group[x], y=group[y], text=said, name=str(name), mode="markers", marker={"size": 9}
        )
    figure.update_layout(yaxis_title=f"{y}, percent", xaxis_title=x, scattermode="group")
    return _html(figure)


def _bars(found: pd.DataFrame) -> str:
    from plotly.subplots import make_subplots

    inits = sorted(found.init.unique(), key=natural)
    figure = make_subplots(len(inits), 1, shared_xaxes=True, subplot_titles=inits)
    merges = [m for m in found["merge"].unique() if m not in ORDER]
    colors = {
        m: f"hsl({360 * i / max(len(merges), 1):.0f}, 60%, 55%)" for i, m in enumerate(merges)
    }
    colors |= {"individual": "#222", "pretrained": "#aaa"}
    for number, init in enumerate(inits, 1):
        means = found[found.init == init].groupby(["merge", "task"], sort=False).value.mean()
        for merge in ["pretrained", *merges, "individual"]:
            if merge in means.index.get_level_values(0):
                figure.add_bar(
                    x=means[merge].index, y=means[merge], name=merge, legendgroup=merge,
                    showlegend=number == 1, marker_color=colors[merge], row=number, col=1,
                )  # fmt: skip
    layout = _figure(height=230 * len(inits) + 90).layout
    return _html(figure.update_layout(layout).update_yaxes(title="percent"))


def _lines(curves: pd.DataFrame) -> str:
    figure = _figure()
    for (merge, space, init), group in curves.groupby(["merge", "space", "init"]):
        seeds = group.groupby("x").y.agg(["mean", "min", "max"])
        name = " ".join([merge, *([space] if space != "delta" else []), init])
        spread = {
            "array": seeds["max"] - seeds["mean"], "arrayminus": seeds["mean"] - seeds["min"]
        }  # fmt: skip
        figure.add_scatter(x=seeds.index, y=seeds["mean"], error_y=spread, name=name)
    figure.update_layout(xaxis_title=curves.curve.iloc[0], yaxis_title=curves.of.iloc[0])
    return _html(figure)


def _interference(diagnostics: pd.DataFrame) -> Charts:
    from plotly.subplots import make_subplots

    from osrm_exp.diagnostics import tidy

    rows = tidy(diagnostics)
    rows = rows[(rows.metric == "response_BA") & (rows.stage == "end")]
    inits, tasks = sorted(rows.init.unique(), key=natural), list(rows.task.unique())
    kinds = rows.module.str.rpartition(".")[2]
    for kind, group in rows.groupby(kinds, sort=False):
        height = -(-len(inits) // 4)
        figure = make_subplots(height, 4, subplot_titles=inits, shared_yaxes=True)
        means = group.groupby(["init", "task", "other"]).value.mean()
        for number, init in enumerate(inits):
            grid = means[init].unstack().loc[tasks, tasks]
            figure.add_heatmap(
                z=grid, x=tasks, y=tasks, coloraxis="coloraxis", row=number // 4 + 1,
                col=number % 4 + 1,
            )  # fmt: skip
        layout = _figure(height=300 * height + 60).layout
        figure.update_layout(layout, coloraxis={"colorscale": "Magma", "cmin": 0})
        figure.update_yaxes(autorange="reversed").update_annotations(font_size=12)
        yield (
            f"Interference in the {kind} modules",
            "How strongly a task's trained adapter (row) answers the inputs of a task (column), "
            "as a share of their norm; means over layers and seeds.",
            _html(figure),
        )  # fmt: skip


def _script() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ValueError("a dashboard needs plotly: pip install 'plotly>=6'") from None
    return f"<script>{get_plotlyjs()}</script>"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser("python -m osrm_exp.dashboard", description=__doc__)
    parser.add_argument("results", help="a results folder, with rows/ in it")
    try:
        print(write_dashboard(parser.parse_args().results))
    except ValueError as error:
        sys.exit(f"osrm_exp: {error}")


if __name__ == "__main__":
    main()
