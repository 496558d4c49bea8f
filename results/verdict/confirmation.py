"""The confirmation of `PLAN.md`, H3: `python results/verdict/confirmation.py`.

Writes the tables between the page's fourth pair of marks and `figures/confirmation.svg`, from the
rows alone.
"""

from __future__ import annotations

import analysis
import pandas as pd
from analysis import DELTA, HERE, MERGES, powered
from matplotlib import rc_context
from matplotlib.figure import Figure
from statsmodels.stats.multitest import multipletests

from osrm_exp.report.figures import PLAIN
from osrm_exp.report.paired import differences, paired
from osrm_exp.report.rows import read_rows

ARM, BASELINE = "contrastive", "kaiming"
CELLS, LEVEL, LEAST = 15, 0.05, 5  # cells of a whole seed, and the least seeds of a look
TESTED = MERGES[1:]  # `average` is described
MARKS = ("<!-- begin: written by confirmation.py -->", "<!-- end: confirmation.py -->")


def whole() -> pd.DataFrame:
    """The rows of the seeds in which every cell is there."""
    return analysis.whole(read_rows(HERE / "confirmation"), CELLS)


def comparisons(rows: pd.DataFrame) -> pd.DataFrame:
    """The four merges with the seed as the unit, and of three of them what was decided."""
    own = rows[(rows.heads == "own") & rows.init.isin([ARM, BASELINE])]
    table = paired(own, BASELINE, delta=DELTA)
    table = table[(table.unit == "seed") & table["merge"].isin(MERGES)]
    table = table.sort_values("merge", key=lambda c: c.map(MERGES.index), ignore_index=True)
    tested = table["merge"].isin(TESTED)
    for key in ("p", "p_equivalent"):
        corrected = multipletests(table.loc[tested, key], method="holm")[1]
        table.loc[tested, f"{key}_holm"] = corrected
    table.loc[~tested, "p_holm"] = float("nan")  # of no test that was planned
    table = powered(table, LEVEL)
    table["verdict"] = [
        analysis.verdict(line, LEVEL) if tested[line.Index] else "described"
        for line in table.itertuples()
    ]
    return table


def verdict(table: pd.DataFrame) -> str:
    """H3's, by the rule of H1 and H2."""
    return analysis.decided(table[table["merge"].isin(TESTED)].verdict)


def by_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """`[heads, merge, seed]`, points, mean over tasks."""
    gains, _ = differences(rows[rows.init.isin([ARM, BASELINE])], BASELINE)
    return gains.groupby(["heads", "merge", "seed"]).gain.mean().unstack("seed")


def page(rows: pd.DataFrame, table: pd.DataFrame) -> str:
    """The tables, as Markdown."""
    names = {
        "merge": "merge", "difference": "points", "interval": "95 % interval",
        "p_holm": "p, Holm", "p_equivalent_holm": "p, within ±1, Holm", "sd": "SD over seeds",
        "detectable": f"seen at 80 % power, level {LEVEL:g}", "verdict": "verdict",
    }  # fmt: skip
    shown = table.assign(
        interval=analysis.interval(table), difference=table.difference.map(analysis.signed)
    )
    for key in ("p_holm", "p_equivalent_holm"):
        shown[key] = [f"{p:.3f}" if p == p else "" for p in table[key]]
    averages = analysis.arms(rows, [BASELINE, ARM]).reset_index()
    return "\n\n".join([
        f"Seeds {analysis.listed(rows)}; level {LEVEL:g}. "
        f"**H3 ({ARM} − {BASELINE}): {verdict(table)}.**",
        analysis.table_of(shown[[*names]].rename(columns=names)),
        analysis.table_of(by_seed(rows).map(analysis.signed).reset_index()),
        analysis.table_of(averages),
    ])  # fmt: skip


def main() -> None:
    rows = whole()
    if rows.seed.nunique() < LEAST:
        raise SystemExit(
            f"{rows.seed.nunique()} seeds are whole: the plan looks at {LEAST} or more"
        )
    table = comparisons(rows)
    text = page(rows, table)
    analysis.write(text, MARKS)
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    ax = figure.subplots()
    lines = by_seed(rows).loc["own"]
    analysis.panel(ax, lines, table, ["pretrained", *MERGES, "individual"])
    ax.set_title(f"{ARM} − {BASELINE}", fontsize=9)
    ax.set_ylabel("points, mean over tasks", fontsize=8)
    with rc_context(PLAIN):
        figure.savefig(HERE / "figures" / "confirmation.svg", metadata={"Date": None})
    print(text)


if __name__ == "__main__":
    main()
