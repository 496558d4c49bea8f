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

REPLICATION, SCALE = HERE / "replication", HERE / "scale"
TITLES = {
    MAIN: "MiniLM, the five text tasks", REPLICATION: "MiniLM, seven GLUE tasks",
    SCALE: "MPNet, the five text tasks",
}  # fmt: skip
LEVEL, LEAST = 0.05, 3  # the level of each part's one look, and the least seeds of one
SHORT, SHORT_CELLS = "gaussian row_norm=1", 8  # an arm, and the cells of its whole seed
PAIRS = [("osrm", "gaussian"), ("osrm", SHORT), (SHORT, "gaussian")]
MARKS = ("<!-- begin: written by further.py -->", "<!-- end: further.py -->")


def section(title: str, rows: pd.DataFrame, table: pd.DataFrame) -> str:
    """A part's verdicts and what they come from, as Markdown."""
    said = analysis.hypotheses(table)
    return "\n\n".join([
        f"#### {title}",
        f"Seeds {analysis.listed(rows)}; level {LEVEL:g}. **H1 (osrm − orthonormal_tied): "
        f"{said['H1']}. H2 (osrm − kaiming): {said['H2']}.**",
        analysis.compared(table, LEVEL),
        analysis.table_of(analysis.seeds(rows).map(analysis.signed).reset_index()),
        analysis.table_of(analysis.arms(rows).reset_index()),
        analysis.table_of(analysis.tasks(rows).reset_index()),
    ])  # fmt: skip


def shortened() -> pd.DataFrame:
    """`gaussian` at norm 1 beside the rows of the main part and of the secondary arms."""
    short = analysis.whole(read_rows(HERE / "row_norm"), SHORT_CELLS)
    rows = pd.concat([secondary.together(), short[short.init == SHORT]])
    return rows[rows.seed.isin(short.seed)]


def norms(rows: pd.DataFrame) -> str:
    """What the length of `gaussian`'s rows is worth, as Markdown."""
    lines = secondary.by_seed(rows, PAIRS).map(analysis.signed)
    return "\n\n".join([
        "#### Row norm: MiniLM, the five text tasks, fp32",
        f"Seeds {analysis.listed(rows)}. Descriptions, uncorrected.",
        secondary.described(secondary.comparisons(rows, PAIRS)),
        analysis.table_of(lines.reset_index()),
        analysis.table_of(analysis.arms(rows, ["osrm", SHORT, "gaussian"]).reset_index()),
    ])  # fmt: skip


def forest(tables: dict[str, pd.DataFrame]) -> Figure:
    """Every primary comparison of every part: the mean, its 95 % interval, a colour a part."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots(1, len(BASELINES), sharey=True)
    for ax, base in zip(axes, BASELINES):
        ax.axhspan(-DELTA, DELTA, color="0.92", zorder=0)
        ax.axhline(0, color="k", linewidth=0.6)
        for number, (title, table) in enumerate(tables.items()):
            lines = table[table.baseline == base].set_index("merge").loc[MERGES]
            x = [place + 0.22 * (number - 1) for place in range(len(MERGES))]
            ax.vlines(x, lines.low, lines.high, color=f"C{number}")
            ax.plot(x, lines.difference, "o", color=f"C{number}", markersize=5,
                    label=f"{title}, {lines.seeds.iloc[0]} seeds")  # fmt: skip
        ax.set_xticks(range(len(MERGES)), MERGES, fontsize=8)
        ax.set_title(f"osrm − {base}", fontsize=9)
    axes[0].set_ylabel("points, mean over tasks", fontsize=8)
    axes[1].legend(fontsize=8, loc="upper left")
    return figure


def main() -> None:
    rows = {part: analysis.whole(read_rows(part)) for part in TITLES}
    for part, found in rows.items():
        if found.seed.nunique() < LEAST:
            raise SystemExit(f"{part.name}: the plan looks at {LEAST} whole seeds or more")
    tables = {part: analysis.primaries(found, LEVEL) for part, found in rows.items()}
    parts = [section(TITLES[p], rows[p], tables[p]) for p in (REPLICATION, SCALE)]
    text = "\n\n".join([*parts, norms(shortened())])
    analysis.write(text, MARKS)
    searches, found = read_rows(REPLICATION, "searches"), rows[REPLICATION]
    tried = searches[searches.cell.isin(set(found.cell))]
    figures = {
        "further": forest({TITLES[part]: table for part, table in tables.items()}),
        "replication_curves": curve_plot(coefficient_curves(scores(found), tried)),
    }
    with rc_context(PLAIN):
        for name, figure in figures.items():
            figure.savefig(HERE / "figures" / f"{name}.svg", metadata={"Date": None})
    print(text)


if __name__ == "__main__":
    main()
