"""Heads x deltas of `PLAN.md`: `python results/verdict/crossed.py`.

RegMean's deltas of every arm under every arm's heads, from the rows of `main/` and `heads/` alone.
Writes the table between the page's third pair of marks and `figures/crossed.svg`.
"""

from __future__ import annotations

import analysis
import pandas as pd
from analysis import ARMS, HERE, MAIN
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.stats import ttest_1samp

from osrm_exp.report.figures import PLAIN
from osrm_exp.report.rows import read_rows

MARKS = ("<!-- begin: written by crossed.py -->", "<!-- end: crossed.py -->")
HEADS = [*ARMS, "head_only"]


def crossed() -> pd.DataFrame:
    """RegMean's headline rows with the heads that they were made under, of whole seeds."""
    rows = pd.concat([analysis.whole(read_rows(MAIN)), read_rows(HERE / "heads")])
    rows = rows[rows.headline & (rows["merge"] == "regmean") & rows.init.isin(ARMS)]
    heads = rows.heads.where(rows.heads != "own", rows.init)
    rows = rows.assign(heads=heads)
    cells = rows.groupby("seed").cell.nunique()
    return rows[rows.seed.isin(cells[cells == len(ARMS) * len(HEADS)].index)]


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """Percent `[deltas, heads]`, mean over tasks and seeds."""
    table = 100 * rows.groupby(["init", "heads"]).value.mean().unstack()
    return table.loc[ARMS, HEADS].rename_axis("deltas of", axis=0)


def effects(rows: pd.DataFrame) -> pd.DataFrame:
    """`osrm` against the others, points: its deltas under the same heads, its heads with the same
    deltas. The seed is the unit."""
    by_seed = 100 * rows.groupby(["init", "heads", "seed"]).value.mean()
    found = []
    for other in ARMS[:-1]:
        for heads in HEADS:
            gains = by_seed["osrm", heads] - by_seed[other, heads]
            found.append(_line(f"deltas of osrm for {other}'s", f"heads of {heads}", gains))
        for deltas in ARMS:
            gains = by_seed[deltas, "osrm"] - by_seed[deltas, other]
            found.append(_line(f"heads of osrm for {other}'s", f"deltas of {deltas}", gains))
    return pd.DataFrame(found)


def _line(exchanged: str, kept: str, gains: pd.Series) -> dict[str, str]:
    low, high = ttest_1samp(gains, 0).confidence_interval()
    return {
        "exchanged": exchanged, "with": kept, "points": analysis.signed(gains.mean()),
        "95 % interval": f"{low:+.1f} … {high:+.1f}",
    }  # fmt: skip


def draw(table: pd.DataFrame) -> Figure:
    """The averages as a map."""
    figure = Figure(figsize=(5, 3), layout="constrained")
    ax = figure.subplots()
    ax.imshow(table, cmap="Blues", vmin=table.min().min() - 1, vmax=table.max().max() + 3)
    for i, line in enumerate(table.to_numpy()):
        for j, value in enumerate(line):
            ax.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=9)
    ax.set_xticks(range(len(HEADS)), HEADS, fontsize=8)
    ax.set_yticks(range(len(ARMS)), ARMS, fontsize=8)
    ax.set_xlabel("heads of", fontsize=8)
    ax.set_ylabel("deltas of", fontsize=8)
    return figure


def main() -> None:
    rows = crossed()
    table = means(rows)
    seeds = analysis.listed(rows)
    text = "\n\n".join([
        f"RegMean, seeds {seeds}, percent, mean over tasks and seeds. Columns: whose heads.",
        analysis.table_of(table.reset_index()), analysis.table_of(effects(rows)),
    ])  # fmt: skip
    analysis.write(text, MARKS)
    with rc_context(PLAIN):
        draw(table).savefig(HERE / "figures" / "crossed.svg", metadata={"Date": None})
    print(text)


if __name__ == "__main__":
    main()
