"""Paired comparisons on paper: every seed's difference first, then one table a unit."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from osrm_exp.report.paired import ALIKE, LEVEL, POWER, UNITS, differences, paired
from osrm_exp.report.predictions import read_predictions
from osrm_exp.report.rows import no_rows, read_rows

INTRO = (
    "Points of the headline metric, mean over the tasks of the suite. Compared is what agrees in "
    "setup, merge, space, heads and settings but those that were searched, in seeds where both "
    "arms have all tasks. No interval from one seed."
)


def write_paired(results: Path | str, baseline: str, *, delta: float) -> str:
    """Writes `paired.md` and `paired.csv` from a folder's rows and predictions; returns the text.

    Raises:
        ValueError: no rows, no such init, or cells that nothing tells apart.
    """
    results = Path(results)
    rows = read_rows(results)
    if rows.empty:
        raise ValueError(no_rows(results))
    predictions = read_predictions(results, rows.cell.unique())
    table = paired(rows, baseline, delta=delta, predictions=predictions)
    text = paired_text(table, *differences(rows, baseline), baseline, delta=delta)
    table.to_csv(results / "paired.csv", index=False, float_format="%.4f")
    (results / "paired.md").write_text(f"{text}\n")
    return text


def paired_text(
    table: pd.DataFrame, gains: pd.DataFrame, missing: list[str], baseline: str, *, delta: float
) -> str:
    """`paired` and `differences` as Markdown."""
    parts = [f"# Differences from {baseline}", INTRO]
    if not table.empty:
        parts += ["## Seed by seed", _seeds(table, gains, baseline)]
    for unit, condition in UNITS.items():
        of_unit = table[table.unit == unit] if not table.empty else table
        if not of_unit.empty and of_unit.low.notna().any():
            parts += [f"## Drawn: {unit}", f"Conditional on {condition}."]
            parts += [_intervals(of_unit[of_unit.low.notna()], baseline, delta)]
    if missing:
        parts += ["## Not compared", *[f"- {line}" for line in missing]]
    return "\n\n".join(parts)


def _seeds(table: pd.DataFrame, gains: pd.DataFrame, baseline: str) -> str:
    names = [*ALIKE, "init"]
    by_task = gains.groupby([*names, "task"]).gain.mean()
    counts = pd.DataFrame(
        {"better": (by_task > 0).groupby(names).sum(), "worse": (by_task < 0).groupby(names).sum()}
    )
    seeds = gains.groupby([*names, "seed"]).gain.mean().unstack().map(_signed)
    seeds = seeds.rename(columns=lambda seed: f"seed {seed}")
    first = table.drop_duplicates(names)[[*names, "difference"]]
    first["difference"] = first.difference.map(_signed)
    return _markdown(first.join(seeds, on=names).join(counts, on=names), baseline)


def _intervals(table: pd.DataFrame, baseline: str, delta: float) -> str:
    shown = table[[*ALIKE, "init"]].assign(difference=table.difference.map(_signed))
    bounds = zip(table.low, table.high)
    shown[f"{LEVEL:.0%} interval"] = [f"{_signed(low)} … {_signed(high)}" for low, high in bounds]
    names = {"p": "p", "p_holm": "p, Holm", "p_equivalent": f"p, equivalent within ±{delta:g}"}
    for column, name in names.items():
        shown[name] = table[column].map("{:.3f}".format)
    if table.detectable.notna().any():
        shown[f"seen at {POWER:.0%} power"] = table.detectable.map("{:.1f}".format)
    return _markdown(shown.assign(seeds=table.seeds, tasks=table.tasks), baseline)


def _markdown(table: pd.DataFrame, baseline: str) -> str:
    """Without the columns that tell no lines apart."""
    table = table.drop(columns=_alike(table)).rename(columns={"init": f"init − {baseline}"})
    table = table.map(lambda v: str(v).replace("|", "\\|"))
    align = ["left" if c in ("merge", "space", "heads", "settings", "setup") or "init" in c else
             "right" for c in table]  # fmt: skip
    return table.to_markdown(index=False, disable_numparse=True, colalign=align)


def _alike(table: pd.DataFrame) -> list[str]:
    """The columns that say one thing of every merge."""
    kept = {"merge"} if table.setup.nunique() == 1 else {"merge", "setup"}
    values = table.groupby("merge")[[c for c in ALIKE if c not in kept]].nunique()
    return [c for c in values if (values[c] == 1).all()]


def _signed(points: float) -> str:
    return "—" if points != points else f"{points:+.1f}"
