"""The three further parts of `PLAN.md`: `python results/verdict/further.py`.

GLUE, a larger encoder, and `gaussian` with rows of norm 1. Writes the tables between the page's
fifth pair of marks, `figures/further.svg` and `figures/replication_curves.svg`, from rows alone.
"""

from __future__ import annotations

import analysis
import pandas as pd
import secondary
from analysis import BASELINES, DELTA, HERE, MAIN, MERGES
from matplotlib import rc_context
from matplotlib.figure import Figure

from osrm_exp.report.curves import coefficient_curves
from osrm_exp.report.figures import PLAIN
from osrm_exp.report.plots import curve_plot
from osrm_exp.report.rows import read_rows
from osrm_exp.report.scores import scores

PARTS = {
    "replication": "MiniLM, seven GLUE tasks", "scale": "MPNet, the five text tasks",
}  # fmt: skip
LEVEL, LEAST = 0.05, 3  # the level of each part's one look, and the least seeds of one
SHORT, SHORT_CELLS = "gaussian row_norm=1", 8  # an arm, and the cells of its whole seed
PAIRS = [("osrm", "gaussian"), ("osrm", SHORT), (SHORT, "gaussian")]
MARKS = ("<!-- begin: written by further.py -->", "<!-- end: further.py -->")


def part(name: str) -> pd.DataFrame:
    """The rows of the seeds in which every cell is there; none, where they are too few to look."""
    rows = analysis.whole(read_rows(HERE / name))
    return rows if rows.seed.nunique() >= LEAST else rows.iloc[:0]


def section(title: str, rows: pd.DataFrame) -> str:
    """A part's verdicts and what they come from, as Markdown."""
    table = analysis.primaries(rows, LEVEL)
    said = analysis.hypotheses(table)
    seeds = ", ".join(map(str, sorted(rows.seed.unique())))
    return "\n\n".join([
        f"#### {title}",
        f"Seeds {seeds}; level {LEVEL:g}. **H1 (osrm − orthonormal_tied): {said['H1']}. "
        f"H2 (osrm − kaiming): {said['H2']}.**",
        analysis.compared(table, LEVEL),
        analysis.table_of(analysis.seeds(rows).map(analysis.signed).reset_index()),
        analysis.table_of(analysis.arms(rows).reset_index()),
        analysis.table_of(analysis.tasks(rows).reset_index()),
    ])  # fmt: skip


def shortened() -> pd.DataFrame:
    """`gaussian` at norm 1 beside the main part's `osrm` and the secondary `gaussian`."""
    short = analysis.whole(read_rows(HERE / "row_norm"), SHORT_CELLS)
    rows = pd.concat([secondary.together(), short[short.init == SHORT]])
    return rows[rows.seed.isin(short.seed) & rows.init.isin(["osrm", "gaussian", SHORT])]


def norms(rows: pd.DataFrame) -> str:
    """What the length of `gaussian`'s rows is worth, as Markdown."""
    arms = ["osrm", SHORT, "gaussian"]
    lines = secondary.by_seed(rows, PAIRS).map(analysis.signed)
    return "\n\n".join([
        "#### Row norm: MiniLM, the five text tasks, fp32",
        f"Seeds {', '.join(map(str, sorted(rows.seed.unique())))}. Descriptions, uncorrected.",
        secondary.described(secondary.comparisons(rows, PAIRS)),
        analysis.table_of(lines.reset_index()),
        analysis.table_of(_averages(rows, arms)),
    ])  # fmt: skip


def _averages(rows: pd.DataFrame, arms: list[str]) -> pd.DataFrame:
    found = scores(rows)
    own = found[(found.heads == "own") & found.init.isin(arms)]
    names = {"bare": "pretrained", "expert": "individual", "value": "merged", "lost": "lost"}
    table = own.groupby(["merge", "init"])[[*names]].mean().rename(columns=names)
    return table.loc[MERGES].reset_index()


def forest(looks: dict[str, pd.DataFrame]) -> Figure:
    """Every primary comparison of every part: the mean, its 95 % interval, a colour a part."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots(1, len(BASELINES), sharey=True)
    for ax, base in zip(axes, BASELINES):
        ax.axhspan(-DELTA, DELTA, color="0.92", zorder=0)
        ax.axhline(0, color="k", linewidth=0.6)
        for number, (name, rows) in enumerate(looks.items()):
            table = analysis.primaries(rows, LEVEL)
            table = table[table.baseline == base].set_index("merge").loc[MERGES]
            x = [place + 0.22 * (number - 1) for place in range(len(MERGES))]
            ax.vlines(x, table.low, table.high, color=f"C{number}")
            ax.plot(x, table.difference, "o", color=f"C{number}", markersize=5,
                    label=f"{name}, {rows.seed.nunique()} seeds")  # fmt: skip
        ax.set_xticks(range(len(MERGES)), MERGES, fontsize=8)
        ax.set_title(f"osrm − {base}", fontsize=9)
    axes[0].set_ylabel("points, mean over tasks", fontsize=8)
    axes[1].legend(fontsize=8, loc="upper left")
    return figure


def main() -> None:
    looks = {title: part(name) for name, title in PARTS.items()}
    looks = {title: rows for title, rows in looks.items() if len(rows)}
    text = "\n\n".join([*(section(*one) for one in looks.items()), norms(shortened())])
    analysis.write(text, MARKS)
    every = {"MiniLM, the five text tasks": analysis.whole(read_rows(MAIN)), **looks}
    figures = {"further": forest(every)}
    if PARTS["replication"] in looks:
        rows = looks[PARTS["replication"]]
        searches = read_rows(HERE / "replication", "searches")
        tried = searches[searches.cell.isin(set(rows.cell))]
        figures["replication_curves"] = curve_plot(coefficient_curves(scores(rows), tried))
    with rc_context(PLAIN):
        for name, figure in figures.items():
            figure.savefig(HERE / "figures" / f"{name}.svg", metadata={"Date": None})
    print(text)


if __name__ == "__main__":
    main()
