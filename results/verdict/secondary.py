"""The secondary arms of `PLAN.md` beside the main part: `python results/verdict/secondary.py`.

Writes the tables between the page's second pair of marks and `figures/secondary.svg`, from the rows
alone. Descriptions: no verdict hangs on them.
"""

from __future__ import annotations

import analysis
import pandas as pd
from analysis import DELTA, HERE, MAIN, MERGES, powered
from matplotlib import rc_context
from matplotlib.figure import Figure

from osrm_exp.report.figures import PLAIN
from osrm_exp.report.paired import differences, paired
from osrm_exp.report.rows import read_rows

SECONDARY = HERE / "secondary"
PAIRS = [("osrm", "gaussian"), ("osrm_released", "osrm"), ("contrastive", "osrm")]
ARMS = [*analysis.ARMS, "gaussian", "osrm_released", "contrastive"]
LEVEL = 0.05
MARKS = ("<!-- begin: written by secondary.py -->", "<!-- end: secondary.py -->")


def together() -> pd.DataFrame:
    """The rows of both parts, of the seeds that are whole in both."""
    main, more = (analysis.whole(read_rows(folder)) for folder in (MAIN, SECONDARY))
    more = more[more.init != "head_only"]  # the same cells as the main part's
    seeds = set(main.seed) & set(more.seed)
    rows = pd.concat([main, more], ignore_index=True)
    return rows[rows.seed.isin(seeds)]


def comparisons(rows: pd.DataFrame, pairs: list[tuple[str, str]] = PAIRS) -> pd.DataFrame:
    """An arm minus another with the four merges, in points, with the seed as the unit."""
    found = []
    for arm, baseline in pairs:
        own = rows[(rows.heads == "own") & rows.init.isin([arm, baseline])]
        table = paired(own, baseline, delta=DELTA)
        table = table[(table.unit == "seed") & table["merge"].isin(MERGES)]
        table = table.sort_values("merge", key=lambda c: c.map(MERGES.index), kind="stable")
        found.append(table.assign(comparison=f"{arm} − {baseline}"))
    table = pd.concat(found, ignore_index=True)
    return powered(table, LEVEL)


def by_seed(rows: pd.DataFrame, pairs: list[tuple[str, str]] = PAIRS) -> pd.DataFrame:
    """Every comparison seed by seed, mean over tasks: merges and references, under own heads."""
    parts = []
    for arm, baseline in pairs:
        own = rows[(rows.heads == "own") & rows.init.isin([arm, baseline])]
        gains, _ = differences(own, baseline)
        parts.append(gains.assign(comparison=f"{arm} − {baseline}"))
    gains = pd.concat(parts).groupby(["comparison", "merge", "seed"], sort=False).gain.mean()
    return gains.unstack("seed")


def described(table: pd.DataFrame) -> str:
    """Comparisons of which none is decided, as Markdown."""
    shown = table.assign(
        interval=analysis.interval(table), difference=table.difference.map(analysis.signed)
    )
    columns = {
        "comparison": "comparison", "merge": "merge", "difference": "points",
        "interval": "95 % interval", "p_equivalent": "p, within ±1", "sd": "SD over seeds",
        "detectable": f"seen at 80 % power, level {LEVEL:g}",
    }  # fmt: skip
    return analysis.table_of(shown[[*columns]].rename(columns=columns))


def page(rows: pd.DataFrame, table: pd.DataFrame) -> str:
    """The tables, as Markdown."""
    lines = by_seed(rows).map(analysis.signed).reset_index()
    return "\n\n".join([
        f"Seeds {analysis.listed(rows)}. Descriptions, uncorrected.",
        described(table), "### All six arms, averages over tasks and seeds, percent",
        analysis.table_of(analysis.arms(rows, ARMS).reset_index()),
        "### The secondary comparisons seed by seed, points", analysis.table_of(lines),
    ])  # fmt: skip


def draw(lines: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """A panel a comparison: a dot a seed, the mean and its interval beside it."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    axes = figure.subplots(1, len(PAIRS), sharey=True)
    shown = ["pretrained", *MERGES, "individual"]
    for ax, (arm, baseline) in zip(axes, PAIRS):
        name = f"{arm} − {baseline}"
        analysis.panel(ax, lines.loc[name], table[table.comparison == name], shown)
        ax.set_title(name, fontsize=9)
    axes[0].set_ylabel("points, mean over tasks", fontsize=8)
    return figure


def main() -> None:
    rows = together()
    table = comparisons(rows)
    text = page(rows, table)
    analysis.write(text, MARKS)
    with rc_context(PLAIN):
        draw(by_seed(rows), table).savefig(
            HERE / "figures" / "secondary.svg", metadata={"Date": None}
        )
    print(text)


if __name__ == "__main__":
    main()
