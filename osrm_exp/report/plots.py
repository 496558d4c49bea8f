"""The pictures themselves: tidy numbers in, a matplotlib figure out."""

from __future__ import annotations

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from osrm_exp.report.frame import LINE, ORDER, labels, natural

MOST = 10  # merges side by side; of more inits below each other no figure is drawn
MARKERS = "ovD^Xs*P"


def bar_plot(found: pd.DataFrame) -> Figure:
    """A panel an init; a group of bars a task, one bar a merge."""
    found = found.assign(label=labels(found))
    inits = sorted(found.init.unique(), key=natural)
    merged = found[~found["merge"].isin(ORDER)]
    order = merged.groupby("label").value.mean().sort_values(ascending=False).index
    drawn = sorted(order[:MOST], key=natural)
    figure = Figure(figsize=(10.5, 2.2 * len(inits) + 0.6), layout="constrained")
    for ax, init in zip(figure.subplots(len(inits), squeeze=False).flat, inits):
        _bar_panel(ax, found[found.init == init], list(found.task.unique()), drawn)
        ax.set_title(init, fontsize=9, loc="left")
    legend(figure, f"{MOST} best of {len(order)}" if len(order) > MOST else None)
    return figure


def legend(figure: Figure, title: str | None = None) -> None:
    """One for all panels."""
    found = [zip(*ax.get_legend_handles_labels()) for ax in figure.axes]
    by_label = {label: handle for pairs in found for handle, label in pairs}
    figure.legend(
        by_label.values(), by_label.keys(), loc="outside right upper", fontsize=8, title=title
    )


def _bar_panel(ax: Axes, found: pd.DataFrame, tasks: list[str], labels: list[str]) -> None:
    means = found.groupby(["label", "task"]).value.mean().unstack().reindex(columns=tasks)
    places, width = range(len(tasks)), 0.8 / max(len(labels), 1)
    floors = found.groupby("task").floor.first().reindex(tasks)
    if floors.notna().any():
        ax.bar(places, floors, 0.9, color="0.85", label="floor", zorder=0)
    for number, label in enumerate(labels):
        if label in means.index:
            x = [i - 0.4 + (number + 0.5) * width for i in places]
            ax.bar(x, means.loc[label], width, color=f"C{number % 10}", label=label)
    lines = {"individual": ("-", "expert"), "pretrained": (":", "without adapter")}
    for merge, (style, label) in lines.items():
        if merge in means.index:
            ends = [i - 0.45 for i in places], [i + 0.45 for i in places]
            ax.hlines(means.loc[merge], *ends, color="k", linestyle=style, label=label)
    ax.axhline(0, color="k", linewidth=0.5)
    ax.set_xticks(places, tasks, fontsize=8)
    ax.tick_params(axis="y", labelsize=7)
    ax.set_ylabel("score in percent", fontsize=8)


def cost_plot(found: pd.DataFrame) -> Figure:
    """A point a line of the table; a colour a merge, a marker an init."""
    merged = found[~found["merge"].isin(ORDER) & found.merge_seconds.notna()]
    keys = ["merge", "init", *LINE]
    points = merged.groupby(keys)[["value", "merge_seconds"]].mean()
    merges, inits = (list(points.index.unique(level)) for level in keys[:2])
    colors = colormaps["tab10" if len(merges) <= 10 else "turbo"].resampled(max(len(merges), 10))
    markers = {init: MARKERS[number % len(MARKERS)] for number, init in enumerate(inits)}
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    ax = figure.subplots()
    for (merge, init, *_), (value, seconds) in zip(points.index, points.to_numpy()):
        ax.plot(seconds, value, markers[init], color=colors(merges.index(merge)))
    for number, merge in enumerate(merges):
        ax.plot([], [], "s", color=colors(number), label=merge)
    for init, marker in markers.items():
        ax.plot([], [], marker, color="k", label=init)
    ax.set_xscale("log")
    ax.set_xlabel("seconds of one merge", fontsize=8)
    ax.set_ylabel("average in percent", fontsize=8)
    ax.tick_params(labelsize=7, which="both")
    legend(figure)
    return figure


def curve_plot(curves: pd.DataFrame) -> Figure:
    """A panel a merge, a line an arm: the mean of seeds, between the lowest and the highest."""
    panels = [*curves.groupby(["setup", "merge", "space"])]
    width = min(len(panels), 4)
    height = -(-len(panels) // width)
    figure = Figure(figsize=(3.4 * width + 1.8, 2.8 * height + 0.4), layout="constrained")
    axes = figure.subplots(height, width, squeeze=False, sharey=True)
    arms = sorted(curves.arm.unique(), key=natural)
    setups = curves.setup.nunique()
    for ax, ((setup, merge, space), panel) in zip(axes.flat, panels):
        for number, arm in enumerate(arms):
            _line(ax, panel[panel.arm == arm], arm, number)
        name = merge if space == "delta" else f"{merge} ({space})"
        ax.set_title(f"{name}, {setup}" if setups > 1 else name, fontsize=9)
        ax.set_xlabel(curves.curve.iloc[0], fontsize=8)
        ax.tick_params(labelsize=7)
    for ax in axes[:, 0]:
        ax.set_ylabel(curves.of.iloc[0], fontsize=8)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    legend(figure)
    return figure


def _line(ax: Axes, points: pd.DataFrame, label: str, number: int) -> None:
    if points.empty:
        return
    seeds = points.groupby("x").y.agg(["mean", "min", "max"])
    color = f"C{number % 10}"
    style = ("-", "--", ":")[number // 10 % 3]
    ax.plot(seeds.index, seeds["mean"], marker=".", color=color, linestyle=style, label=label)
    ax.fill_between(seeds.index, seeds["min"], seeds["max"], color=color, alpha=0.2, linewidth=0)
