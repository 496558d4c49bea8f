"""Pictures of (tidy) diagnostic rows alone: who disturbs whom, and where in the network.

`python -m osrm_exp.report DIR` draws them beside the tables, wherever there are diagnostics.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

PLAIN: Any = {"svg.hashsalt": "osrm_exp", "svg.fonttype": "none"}  # the same rows, the same file
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
    inits, tasks = sorted(rows.init.unique()), list(rows.task.unique())
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
        for number, init in enumerate(sorted(rows.init.unique())):
            line = chosen[chosen.init == init].groupby("module").value.mean().reindex(modules)
            ax.plot(range(len(modules)), line, label=init, marker=".", color=f"C{number % 10}")
        ax.set_title(title, fontsize=9)
        ax.set_ylim(bottom=0)
        ax.tick_params(labelsize=7)
    for ax in panels[-1]:
        ax.set_xticks(range(len(modules)), [_short(m) for m in modules], rotation=90, fontsize=6)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    place: Any = "outside right"  # a place that matplotlib's stubs do not know
    figure.legend(handles, labels, loc=place, fontsize=8)
    return figure


def write_figures(results: Path, rows: pd.DataFrame) -> list[Path]:
    """`interference.svg` and `layers.svg` in a results folder."""
    files = {"interference.svg": heat_maps, "layers.svg": depth_plot}
    for name, draw in files.items():
        with rc_context(PLAIN):
            draw(rows).savefig(results / name, metadata={"Date": None})
    return [results / name for name in files]


def _short(module: str) -> str:
    """Numbers and last name: `encoder.layer.0.attention.self.query` is `0.query`."""
    *path, last = module.split(".")
    return ".".join([*(part for part in path if part.isdigit()), last])
