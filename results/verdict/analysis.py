"""Every number of this folder's page from the rows alone: `python results/verdict/analysis.py`.

Writes the tables between the page's two marks (`README.md`), `numbers.json`, and the figures.
What is a verdict, and at which level, stands in `PLAN.md`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr, t
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from osrm_exp.diagnostics import tidy
from osrm_exp.report.curves import coefficient_curves
from osrm_exp.report.figures import PLAIN
from osrm_exp.report.paired import differences, paired
from osrm_exp.report.plots import curve_plot
from osrm_exp.report.predictions import read_predictions
from osrm_exp.report.rows import read_rows
from osrm_exp.report.scores import recovered, scores

HERE = Path(__file__).parent
MAIN, PILOT = HERE / "main", HERE / "pilot"
ARMS = ["kaiming", "orthonormal_tied", "osrm"]
MERGES = ["average", "task_arithmetic", "ties", "regmean"]
BASELINES = {"orthonormal_tied": "H1", "kaiming": "H2"}
CELLS = 22  # of a whole seed
PLANNED, FIRST, LAST = 10, 0.01, 0.04  # seeds, and the levels of the two looks
DELTA, POWER = 1.0, 0.8
GRIDS = {  # the fixed part of each grid, before it was widened
    "task_arithmetic": [0.1, 0.2, 0.3, 0.4, 0.6, 0.8], "ties": [0.4, 0.8, 1.2, 1.6, 2.0],
}  # fmt: skip
MARKS = ("<!-- begin: written by analysis.py -->", "<!-- end -->")


def whole(rows: pd.DataFrame, count: int = CELLS) -> pd.DataFrame:
    """The rows of the seeds in which every cell is there."""
    cells = rows.groupby("seed").cell.nunique()
    return rows[rows.seed.isin(cells[cells == count].index)]


def level(rows: pd.DataFrame) -> float:
    """Of the look that these seeds make."""
    return LAST if rows.seed.nunique() >= PLANNED else FIRST


def primaries(
    rows: pd.DataFrame, alpha: float, predictions: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The eight primary comparisons with the seed as the unit, and what is decided at a level."""
    found = pd.concat([_of(rows, base, predictions) for base in BASELINES], ignore_index=True)
    table = found[found.unit == "seed"].reset_index(drop=True)
    for raw, name in (("p", "p_holm"), ("p_equivalent", "p_equivalent_holm")):
        table[name] = multipletests(table[raw], method="holm")[1]
    table = powered(table, alpha)
    table["verdict"] = [verdict(line, alpha) for line in table.itertuples()]
    return table


def _of(rows: pd.DataFrame, baseline: str, predictions: pd.DataFrame | None) -> pd.DataFrame:
    own = rows[(rows.heads == "own") & rows.init.isin(["osrm", baseline])]
    table = paired(own, baseline, delta=DELTA, predictions=predictions)
    table = table[table["merge"].isin(MERGES)].assign(baseline=baseline)
    return table.sort_values("merge", key=lambda c: c.map(MERGES.index), kind="stable")


def powered(table: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """Comparisons with their spread over seeds and the smallest difference that is seen."""
    sd = (table.high - table.difference) * np.sqrt(table.seeds) / t.ppf(0.975, table.seeds - 1)
    seen = [TTestPower().solve_power(nobs=n, alpha=alpha, power=POWER) for n in table.seeds]
    return table.assign(sd=sd, detectable=np.ravel(seen) * sd)


def verdict(line: object, alpha: float) -> str:
    """A comparison's, by its corrected p values."""
    said = []
    if line.p_holm < alpha:
        said.append("supported" if line.difference > 0 else "refuted")
    if line.p_equivalent_holm < alpha:
        said.append(f"equivalent within ±{DELTA:g}")
    return ", ".join(said) or "undecided"


def hypotheses(table: pd.DataFrame) -> dict[str, str]:
    """The verdict on H1 and H2, by the plan's rule."""
    return {name: decided(table[table.baseline == base].verdict)
            for base, name in BASELINES.items()}  # fmt: skip


def decided(said: pd.Series) -> str:
    """Of a hypothesis, from the verdicts on its comparisons."""
    up, down = said.str.contains("supported").any(), said.str.contains("refuted").any()
    same = said.str.contains("equivalent").all()
    found = [w for w, on in (("supported", up and not down), ("refuted", down and not up),
                             (f"equivalent within ±{DELTA:g}", same)) if on]  # fmt: skip
    return ", ".join(found) or "undecided"


def seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """`osrm` minus each baseline, seed by seed, mean over tasks: every merge and reference."""
    parts = []
    for base in BASELINES:
        gains, _ = differences(rows[rows.init.isin(["osrm", base])], base)
        parts.append(gains.assign(baseline=base))
    gains = pd.concat(parts)
    return gains.groupby(["baseline", "heads", "merge", "seed"]).gain.mean().unstack("seed")


def mixed(rows: pd.DataFrame) -> pd.DataFrame:
    """The mixed model `gain ~ 1 + (1 | task) + (1 | seed)` of every primary comparison."""
    found = []
    for base in BASELINES:
        own = rows[(rows.heads == "own") & rows.init.isin(["osrm", base])]
        gains, _ = differences(own, base)
        for merge in MERGES:
            data = gains[gains["merge"] == merge].assign(all=1)
            parts = {"task": "0 + C(task)", "seed": "0 + C(seed)"}
            model = smf.mixedlm("gain ~ 1", data, groups="all", vc_formula=parts)
            fit = model.fit(method=["lbfgs", "powell"])
            low, high = fit.conf_int().loc["Intercept"]
            found.append({"baseline": base, "merge": merge, "difference": fit.params["Intercept"],
                          "low": low, "high": high, "converged": fit.converged})  # fmt: skip
    return pd.DataFrame(found)


def arms(rows: pd.DataFrame, chosen: list[str] = ARMS) -> pd.DataFrame:
    """Means over tasks and seeds, one line an arm and merge: what the table of the page shows."""
    found = scores(rows)
    alone = found[(found.init == "head_only") & (found["merge"] == "individual")].value.mean()
    own = found[(found.heads == "own") & found.init.isin(chosen)]
    grouped = own.groupby(["merge", "init"])
    table = grouped[["floor", "bare", "expert", "value", "lost"]].mean()
    by_seed = own.groupby(["merge", "init", "seed"])[["gain", "adds"]].mean()
    size = own.task.nunique()
    error = own.assign(v=own.adds_se**2).groupby(["merge", "init", "seed"]).v.mean() / size
    share = recovered(by_seed.gain, by_seed.adds, error**0.5)
    table["recovered"] = share.groupby(["merge", "init"]).mean()
    table["sd"] = own.groupby(["merge", "init", "seed"]).value.mean().groupby(
        ["merge", "init"]).std()  # fmt: skip
    table.insert(1, "head_only", alone)
    names = {"bare": "pretrained", "expert": "individual", "value": "merged", "sd": "SD of merged"}
    return table.loc[[*MERGES]].rename(columns=names)


def tasks(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, one line a task: floor, head alone, and each arm's expert."""
    found = scores(rows)
    alone = found[(found.init == "head_only") & (found["merge"] == "individual")]
    experts = found[(found["merge"] == "individual") & found.init.isin(ARMS)]
    table = pd.DataFrame({
        "floor": experts.groupby("task", sort=False).floor.mean(),
        "head only": alone.groupby("task").value.mean(),
    })  # fmt: skip
    return table.join(experts.pivot_table("value", "task", "init"))


def flatness(rows: pd.DataFrame, searches: pd.DataFrame) -> pd.DataFrame:
    """How far the fixed grid lies below its best on average, in points: small is flat."""
    cells = rows.drop_duplicates("cell").set_index("cell")
    tried = searches[searches.cell.isin(cells.index)].copy()
    tried["scaling"] = [point["scaling"] for point in tried.point]
    tried = tried.join(cells[["init", "merge", "seed"]], on="cell")
    fixed = [scaling in GRIDS[merge] for scaling, merge in zip(tried.scaling, tried["merge"])]
    grouped = tried[fixed].groupby(["merge", "init", "seed"]).score
    short = 100 * (grouped.max() - grouped.mean())
    return short.groupby(["merge", "init"]).agg(["mean", "std"])


def interference(rows: pd.DataFrame, diagnostics: pd.DataFrame) -> pd.DataFrame:
    """Per arm, seed and task: what foreign adapters answer to its inputs, and what it lost."""
    lines = tidy(diagnostics)
    foreign = lines[lines.other.notna() & (lines.task != lines.other)]
    wanted = {("response_A", "start"): "before", ("response_BA", "end"): "after"}
    parts = {}
    for (metric, stage), name in wanted.items():
        of = foreign[(foreign.metric == metric) & (foreign.stage == stage)]
        parts[name] = of.groupby(["init", "seed", "other"]).value.mean()
    table = pd.DataFrame(parts).rename_axis(["init", "seed", "task"])
    lost = scores(rows)
    lost = lost[(lost.heads == "own") & (lost["merge"] == "task_arithmetic")]
    return table.join(lost.set_index(["init", "seed", "task"]).lost, how="inner").reset_index()


def prediction(table: pd.DataFrame) -> dict[str, float]:
    """Spearman's correlation of interference with points lost, within tasks."""
    inner = table.groupby("task")[["before", "after", "lost"]].rank()
    return {name: float(spearmanr(inner[name], inner.lost)[0]) for name in ("before", "after")}


def main() -> None:
    rows = whole(read_rows(MAIN))
    if rows.seed.nunique() < 2:
        raise SystemExit(f"{MAIN}/rows holds less than two whole seeds: no interval from one")
    cells, searches = set(rows.cell), read_rows(MAIN, "searches")
    diagnostics = read_rows(MAIN, "diagnostics")
    diagnostics = diagnostics[diagnostics.seed.isin(rows.seed) & diagnostics.init.isin(ARMS)]
    predictions = read_predictions(MAIN, cells)
    table, found = primaries(rows, level(rows)), interference(rows, diagnostics)
    boot = pd.concat([_of(rows, base, predictions) for base in BASELINES])
    text = page(rows, table, boot, searches, found)
    write(text)
    _draw(rows, table, searches[searches.cell.isin(cells)], found)
    numbers = {
        "seeds": sorted(map(int, rows.seed.unique())), "level": level(rows),
        "verdicts": hypotheses(table), "interference": prediction(found),
        "primaries": json.loads(table.to_json(orient="records", double_precision=4)),
    }  # fmt: skip
    (HERE / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(text)


def page(rows: pd.DataFrame, table: pd.DataFrame, boot: pd.DataFrame, searches: pd.DataFrame,
         found: pd.DataFrame) -> str:  # fmt: skip
    """The tables of the page, as Markdown."""
    said, alpha, count = hypotheses(table), level(rows), rows.seed.nunique()
    rho = prediction(found)
    others = boot[boot.unit.isin(["seed, task", "seed, task, row"])]
    wide = others.assign(interval=interval(others)).pivot_table(
        "interval", ["baseline", "merge"], "unit", aggfunc="first", sort=False)  # fmt: skip
    model = mixed(rows)
    model = model.assign(interval=interval(model).where(model.converged, "did not converge"))
    wide["mixed model"] = model.set_index(["baseline", "merge"]).interval
    return "\n\n".join([
        f"Seeds {listed(rows)} ({count} of {PLANNED} planned); "
        f"level of this look {alpha:g}. **H1 (osrm − orthonormal_tied): {said['H1']}. "
        f"H2 (osrm − kaiming): {said['H2']}.**",
        "### The eight primary comparisons", compared(table, alpha),
        "### Other units, 95 % intervals (they decide nothing)", table_of(wide.reset_index()),
        "### Seed by seed, points", table_of(seeds(rows).map(signed).reset_index()),
        "### Averages over tasks and seeds, percent", table_of(arms(rows).reset_index()),
        "### Task by task, single-task, percent", table_of(tasks(rows).reset_index()),
        "### Shortfall from the best over the fixed grid, points, held-out slice",
        table_of(flatness(rows, searches).reset_index()),
        "### Interference against points lost (task arithmetic), Spearman within tasks",
        f"Foreign response of `A` before training: {rho['before']:+.2f}; of `BA` after training: "
        f"{rho['after']:+.2f} ({len(found)} points of {found.seed.nunique()} seeds, which are not "
        "independent: a description).",
        table_of(found.groupby("init")[["before", "after", "lost"]].mean().reset_index(), 3),
    ])  # fmt: skip


def compared(table: pd.DataFrame, alpha: float) -> str:
    """The primary comparisons with what was decided, as Markdown."""
    shown = table.assign(
        comparison="osrm − " + table.baseline, interval=interval(table),
        difference=table.difference.map(signed),
    )  # fmt: skip
    columns = {
        "comparison": "comparison", "merge": "merge", "difference": "points",
        "interval": "95 % interval", "p_holm": "p, Holm",
        "p_equivalent_holm": "p, within ±1, Holm", "sd": "SD over seeds",
        "detectable": f"seen at 80 % power, level {alpha:g}", "verdict": "verdict",
    }  # fmt: skip
    return table_of(shown[[*columns]].rename(columns=columns))


def listed(rows: pd.DataFrame) -> str:
    """The seeds of rows, as text."""
    return ", ".join(map(str, sorted(rows.seed.unique())))


def interval(table: pd.DataFrame) -> pd.Series:
    bounds = zip(table.low, table.high)
    return pd.Series([f"{signed(a)} … {signed(b)}" for a, b in bounds], table.index)


def signed(points: float) -> str:
    return "—" if points != points else f"{points:+.1f}"


def table_of(table: pd.DataFrame, digits: int = 1) -> str:
    """Markdown; p values with three digits, words as they stand."""
    text = table.copy()
    for column in table.select_dtypes("float"):
        places = 3 if str(column).startswith("p, ") else digits
        text[column] = table[column].map(f"{{:.{places}f}}".format)
    words = table.select_dtypes(exclude="number").columns
    align = ["left" if column in words else "right" for column in table]
    return text.to_markdown(index=False, disable_numparse=True, colalign=align)


def write(text: str, marks: tuple[str, str] = MARKS) -> None:
    """Puts the tables between two marks of the page."""
    file = HERE / "README.md"
    before, _, rest = file.read_text().partition(marks[0])
    _, _, after = rest.partition(marks[1])
    file.write_text(f"{before}{marks[0]}\n\n{text}\n\n{marks[1]}{after}")


def _draw(
    rows: pd.DataFrame, table: pd.DataFrame, searches: pd.DataFrame, found: pd.DataFrame
) -> None:
    folder = HERE / "figures"
    folder.mkdir(exist_ok=True)
    drawn = {
        "differences": _differences(seeds(rows), table),
        "curves": curve_plot(coefficient_curves(scores(rows), searches)),
        "interference": _scatter(found), "heads": _heads(rows),
    }  # fmt: skip
    for name, figure in drawn.items():
        with rc_context(PLAIN):
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def _differences(by_seed: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """A dot a seed, the mean and its interval beside it."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, len(BASELINES), sharey=True)
    shown = ["pretrained", *MERGES, "individual"]
    for ax, base in zip(axes, BASELINES):
        panel(ax, by_seed.loc[base, "own"], table[table.baseline == base], shown)
        ax.set_title(f"osrm − {base}", fontsize=9)
    axes[0].set_ylabel("points, mean over tasks", fontsize=8)
    return figure


def panel(ax: Axes, lines: pd.DataFrame, table: pd.DataFrame, shown: list[str]) -> None:
    """Differences `[merge, seed]` of one comparison, in points, with the intervals of a table."""
    ax.axhspan(-DELTA, DELTA, color="0.92", zorder=0)
    ax.axhline(0, color="k", linewidth=0.6)
    for place, merge in enumerate(shown):
        points = lines.loc[merge]
        grey = merge in ("pretrained", "individual")
        ax.plot([place] * len(points), points, "o", color="0.6" if grey else "C0", markersize=4)
        ax.plot(place - 0.2, points.mean(), "_", color="k", markersize=12)
        line = table[table["merge"] == merge]
        if len(line):
            ax.vlines(place + 0.2, line.low, line.high, color="k")
    ax.set_xticks(range(len(shown)), shown, fontsize=8, rotation=20)


def _scatter(found: pd.DataFrame) -> Figure:
    """A point an arm, seed and task; a colour an arm."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    titles = {"before": "foreign response of A, before", "after": "foreign response of BA, after"}
    axes = figure.subplots(1, 2, sharey=True)
    for ax, (column, title) in zip(axes, titles.items()):
        for number, arm in enumerate(ARMS):
            of = found[found.init == arm]
            ax.plot(of[column], of.lost, "o", color=f"C{number}", label=arm, markersize=4)
        ax.set_xlabel(title, fontsize=8)
    axes[0].set_ylabel("points lost, task arithmetic", fontsize=8)
    axes[1].legend(fontsize=8)
    return figure


def _heads(rows: pd.DataFrame) -> Figure:
    """RegMean's deltas of every arm under their own heads and under those trained alone."""
    found = scores(rows)
    merged = found[found["merge"] == "regmean"]
    points = merged.groupby(["heads", "init", "seed"]).value.mean()
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    ax = figure.subplots()
    for number, heads in enumerate(["own", "head_only"]):
        for place, arm in enumerate(ARMS):
            of = points[heads, arm]
            ax.plot([place + 0.2 * number - 0.1] * len(of), of, "o", color=f"C{number}",
                    markersize=4, label=f"heads: {heads}" if not place else None)  # fmt: skip
    ax.set_xticks(range(len(ARMS)), ARMS, fontsize=8)
    ax.set_ylabel("RegMean, percent", fontsize=8)
    ax.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
