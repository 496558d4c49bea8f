"""What the dashboard draws, as pieces of HTML that share one copy of plotly's script."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from plotly.colors import qualitative
from plotly.graph_objects import Figure
from plotly.subplots import make_subplots

from osrm_exp.report.curves import OF, coefficient_curves, sweep_curves
from osrm_exp.report.frame import ORDER, labels, natural, text

COLORS = qualitative.D3
Charts = Iterator[tuple[str, str, str]]


def charts(found: pd.DataFrame, searches: pd.DataFrame, diagnostics: pd.DataFrame) -> Charts:
    """Title, note and HTML of every chart that there is evidence for."""
    averages = _averages(found)
    yield (
        "Average by merge", "Every cell is a point.",
        _scatter(averages, x="merge", color="init", hover=["seed", "settings"]),
    )  # fmt: skip
    for setup, group in found.groupby("setup", sort=False):
        title = "Task by task" + (f", setup {setup}" if found.setup.nunique() > 1 else "")
        yield title, "Means over seeds. Click on a merge in the legend to hide it.", _bars(group)
    for source, curves in {
        "tried": coefficient_curves(found, searches), "swept": sweep_curves(found)
    }.items():  # fmt: skip
        for (name, of), group in curves.groupby(["curve", "of"]) if len(curves) else ():
            title = f"{of[0].upper()}{of[1:]} against {name}"
            yield (
                title,
                f"Every value that {OF[source]}: means of seeds, from the lowest to the highest.",
                _lines(group),
            )
    if not diagnostics.empty:
        yield from _interference(diagnostics)
    if "merge_seconds" in found:
        costs = found.groupby("cell").merge_seconds.first()
        timed = averages.assign(seconds=averages.cell.map(costs))
        timed = timed[~timed["merge"].isin(ORDER)]
        chart = _scatter(timed, x="seconds", color="merge", hover=["init", "seed"], log=True)
        yield "Average against cost", "Seconds of one merge.", chart


def _averages(found: pd.DataFrame) -> pd.DataFrame:
    """One line a cell, the merges from the lowest average to the highest."""
    keys = ["cell", "merge", "init", "seed"]
    table = found.groupby(keys, as_index=False).agg(average=("value", "mean"))
    settings = found.drop_duplicates("cell").set_index("cell").settings
    table["settings"] = table.cell.map(settings).map(text)
    place = table.groupby("merge").average.transform("mean")
    return table.assign(place=place).sort_values(["place", "init"], kind="stable")


def _layout(height: int = 420) -> dict[str, Any]:
    margin = {"l": 60, "r": 20, "t": 40, "b": 50}
    return {"template": "plotly_white", "height": height, "margin": margin}


def _html(figure: Figure) -> str:
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})


def _scatter(
    table: pd.DataFrame, *, x: str, color: str, hover: list[str], log: bool = False
) -> str:
    figure = Figure(layout=_layout())
    for place, name in enumerate(sorted(table[color].unique(), key=natural)):
        group = table[table[color] == name]
        said = group[hover].astype(str).agg(", ".join, axis=1)
        figure.add_scatter(
            x=group[x], y=group.average, text=said, name=name, mode="markers",
            marker={"size": 9, "color": COLORS[place % len(COLORS)]},
        )  # fmt: skip
    room = [table.average.min() - 2, table.average.max() + 2]
    figure.update_layout(xaxis_title=x, scattermode="group", showlegend=True)
    figure.update_xaxes(type="log" if log else None)
    return _html(figure.update_yaxes(title="average, percent", range=room))


def _bars(found: pd.DataFrame) -> str:
    inits = sorted(found.init.unique(), key=natural)
    figure = make_subplots(len(inits), 1, shared_xaxes=True, subplot_titles=inits)
    found = found.assign(label=labels(found))
    merges = sorted(found[~found["merge"].isin(ORDER)].label.unique(), key=natural)
    colors = {
        m: f"hsl({360 * i / max(len(merges), 1):.0f}, 60%, 55%)" for i, m in enumerate(merges)
    }
    colors |= {"individual": "#222", "pretrained": "#aaa"}
    for number, init in enumerate(inits, 1):
        means = found[found.init == init].groupby(["label", "task"], sort=False).value.mean()
        for merge in ["pretrained", *merges, "individual"]:
            if merge in means.index.get_level_values(0):
                figure.add_bar(
                    x=means[merge].index, y=means[merge], name=merge, legendgroup=merge,
                    showlegend=number == 1, marker_color=colors[merge], row=number, col=1,
                )  # fmt: skip
    figure.update_layout(_layout(190 * len(inits) + 90)).update_annotations(font_size=12)
    return _html(figure.update_yaxes(title="percent"))


def _lines(curves: pd.DataFrame) -> str:
    """A panel a merge, a colour an arm."""
    panels = [*curves.groupby(["merge", "space", "setup"])]
    arms = sorted(curves.arm.unique(), key=natural)
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    titles = [
        merge if space == "delta" else f"{merge} ({space})" for (merge, space, _), _ in panels
    ]
    figure = make_subplots(lines, columns, subplot_titles=titles, shared_yaxes=True)
    for number, (_, panel) in enumerate(panels):
        for place, arm in enumerate(arms):
            seeds = panel[panel.arm == arm].groupby("x").y.agg(["mean", "min", "max"])
            up, down = seeds["max"] - seeds["mean"], seeds["mean"] - seeds["min"]
            figure.add_scatter(
                x=seeds.index, y=seeds["mean"], error_y={"array": up, "arrayminus": down},
                name=arm, legendgroup=arm, showlegend=number == 0,
                line_color=COLORS[place % len(COLORS)],
                row=number // columns + 1, col=number % columns + 1,
            )  # fmt: skip
    figure.update_layout(_layout(320 * lines + 60))
    figure.update_xaxes(title=curves.curve.iloc[0]).update_annotations(font_size=12)
    return _html(figure.update_yaxes(title=curves.of.iloc[0], col=1))


def _interference(diagnostics: pd.DataFrame) -> Charts:
    from osrm_exp.diagnostics import tidy  # torch: seconds to import

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
        scale = {"colorscale": "Magma", "cmin": 0, "cmax": means.max()}
        figure.update_layout(_layout(300 * height + 60), coloraxis=scale)
        figure.update_yaxes(autorange="reversed").update_annotations(font_size=12)
        yield (
            f"Interference in the {kind} modules",
            "How strongly a task's trained adapter (row) answers the inputs of a task (column), "
            "as a share of their norm; means over layers and seeds.",
            _html(figure),
        )  # fmt: skip
