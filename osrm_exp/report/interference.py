"""Pictures of (tidy) diagnostic rows: who disturbs whom, and where in the network.

One picture a kind of module: `query` and `value` answer so differently that together they draw a
sawtooth.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from osrm_exp.report.frame import natural
from osrm_exp.report.plots import legend

MAPS = [
    ("response_A", "start", r"before training  $\|A_t H_s\| / \|H_s\|$"),
    ("response_A", "end", r"after training  $\|A_t H_s\| / \|H_s\|$"),
    ("response_BA", "end", r"after training  $\|B_t A_t H_s\| / \|H_s\|$"),
]
DEPTHS = [
    ("response_A", "start", "foreign", r"interference of $A$, before"),
    ("response_A", "end", "foreign", r"interference of $A$, after"),
    ("response_BA", "end", "foreign", r"interference of $BA$, after"),
    ("response_BA", "end", "own", r"own response of $BA$, after"),
    ("overlap_A", "end", "foreign", r"overlap of two tasks' $A$, after"),
    ("overlap_B", "end", "foreign", r"overlap of two tasks' $B$, after"),
    ("drift_A", "end", "own", r"drift of $A$"),
    ("kept_energy", "end", "own", r"energy of $BA$ in the initial rows"),
]


def heat_maps(rows: pd.DataFrame) -> Figure:
    """Task `t` (row) against the inputs of task `s` (column), mean over modules and seeds.

    One column of maps an initialisation; the maps of one line share a colour scale that starts at
    zero. The diagonal is a task's response to its own inputs.
    """
    inits, tasks = sorted(rows.init.unique(), key=natural), list(rows.task.unique())
    figure = Figure(figsize=(1.9 * len(inits) + 1.6, 6.4), layout="constrained")
    axes = figure.subplots(len(MAPS), len(inits), squeeze=False)
    for line, (metric, stage, title) in zip(axes, MAPS):
        chosen = rows[(rows.metric == metric) & (rows.stage == stage)]
        means = chosen.groupby(["init", "task", "other"]).value.mean()
        for ax, init in zip(line, inits):
            grid = means[init].unstack().loc[tasks, tasks]
            image = ax.imshow(grid, vmin=0, vmax=means.max(), cmap="magma")
            ax.set_xticks(range(len(tasks)), tasks, rotation=90, fontsize=6)
            ax.set_yticks(range(len(tasks)), tasks if ax is line[0] else [], fontsize=6)
        line[0].set_ylabel(f"{title}\n\nadapter of", fontsize=7)
        figure.colorbar(image, ax=list(line), shrink=0.8).ax.tick_params(labelsize=6)
    for top, bottom, init in zip(axes[0], axes[-1], inits):
        top.set_title(init.replace(" ", "\n"), fontsize=8)
        bottom.set_xlabel("inputs of", fontsize=7)
    return figure


def depth_plot(rows: pd.DataFrame) -> Figure:
    """Every diagnostic by module in the network's order, one line an initialisation.

    Means over tasks or (ordered) pairs of different tasks, and over seeds.
    """
    modules = list(rows.module.unique())
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    panels = figure.subplots(2, len(DEPTHS) // 2, sharex=True)
    for ax, (metric, stage, whose, title) in zip(panels.flat, DEPTHS):
        chosen = rows[(rows.metric == metric) & (rows.stage == stage)]
        own = chosen.other.isna() | (chosen.task == chosen.other)
        chosen = chosen[own if whose == "own" else ~own]
        for number, init in enumerate(sorted(rows.init.unique(), key=natural)):
            line = chosen[chosen.init == init].groupby("module").value.mean().reindex(modules)
            ax.plot(range(len(modules)), line, label=init, marker=".", color=f"C{number % 10}")
        ax.set_title(title, fontsize=9)
        ax.set_ylim(bottom=0)
        ax.tick_params(labelsize=7)
    for ax in panels[-1]:
        ax.set_xticks(range(len(modules)), [_short(m) for m in modules], fontsize=7)
        ax.set_xlabel("layer", fontsize=8)
    legend(figure)
    return figure


def interference(rows: pd.DataFrame) -> Iterator[tuple[str, Figure, str]]:
    """Name, picture and caption of both figures, for every kind of module."""
    kinds = rows.module.str.rpartition(".")[2]
    for kind, group in rows.groupby(kinds, sort=False):
        of = f"of the {kind} modules, means over seeds"
        yield (
            f"interference_{kind}", heat_maps(group),
            "How strongly the adapter of a task (row) answers the inputs of another (column), "
            f"{of} and layers. The maps of a line share a scale; the diagonal is a task's own.",
        )  # fmt: skip
        yield (
            f"layers_{kind}", depth_plot(group),
            f"What adapters do to data, layer by layer, {of} and tasks or pairs of tasks.",
        )  # fmt: skip


def _short(module: str) -> str:
    """A module's numbers: `encoder.layer.0.attention.self.query` is `0`."""
    return ".".join(part for part in module.split(".") if part.isdigit()) or module
