"""Tables and figures from rows alone. `python -m osrm_exp.report DIR` rebuilds them.

A line is one (init, merge, space, settings); a task's cell is its headline metric in percent, over
seeds as mean ± standard deviation. `average` is the mean over tasks and stays empty unless every
task of the suite is there. `kept` is the share of single-task accuracy: merged / its own adapters'
`individual` row, per task, then the mean over tasks, and it stays empty without those rows.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from osrm_exp.report.rows import read_rows

SETUP = ["experiment", "model", "dataset", "tuning", "protocol", "setup"]
ORDER = {"pretrained": -1, "individual": 1}


class Report(Callback):
    """Hydra callback: counts the cells of a sweep and rebuilds its tables when it ends."""

    failed = 0  # cells, in this process

    def on_multirun_end(self, config: DictConfig, **kwargs) -> None:
        self._finish(config, Path(config.hydra.sweep.dir))

    def on_run_end(self, config: DictConfig, **kwargs) -> None:
        self._finish(config, Path(config.hydra.run.dir))

    def _finish(self, config: DictConfig, folder: Path) -> None:
        found = [json.loads(file.read_text()) for file in sorted(folder.rglob("status.json"))]
        results = Path(config.paths.results)
        if (results / "rows").is_dir():
            print(write_report(results))
        count = {k: [s for s in found if s["outcome"] == k] for k in OUTCOMES}
        print(f"\n{len(found)} cells: " + ", ".join(f"{len(count[k])} {k}" for k in OUTCOMES))
        for status in count["failed"]:
            reason = status.get("reason", "interrupted")
            print(f"  failed: {' '.join(status['overrides'])}: {reason}")
        Report.failed = len(count["failed"])
        print(f"tables: {results}/table.{{csv,md,tex}}   rows: {results}/rows/   "
              f"adapters: {config.paths.store}")  # fmt: skip


OUTCOMES = ("finished", "skipped", "failed")


def lines(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a table line: its identity, one column a task, `average`, `kept` (in percent).

    Task columns hold `(mean, std, seeds, degenerate)`.

    Raises:
        ValueError: one cell and task with two headline rows.
    """
    rows = rows[rows.headline].copy()
    twice = rows.duplicated(["cell", "task", "split"])
    if twice.any():
        raise ValueError(f"cell {rows[twice].cell.iloc[0]} has two headline rows for one task")
    rows["value"] *= 100
    rows["experts"] = rows.adapters.map(tuple)
    single = rows[rows["merge"] == "individual"].set_index(["setup", "experts", "task"]).value
    single = single[~single.index.duplicated() & (single > 0)]  # no share of a task not learned
    keys = zip(rows.setup, rows.experts, rows.task)
    rows["kept"] = [100 * v / single.get(k, float("nan")) for v, k in zip(rows.value, keys)]
    suite = rows.groupby("setup").task.unique()
    return pd.DataFrame([_line(group, suite[group.setup.iloc[0]]) for _, group in _grouped(rows)])


def _grouped(rows: pd.DataFrame):
    return rows.groupby(["setup", "line"], sort=False)


def _line(group: pd.DataFrame, suite) -> dict:
    first = group.iloc[0]
    cells = group.drop_duplicates("cell")
    settings = [_settings(s) for s in cells.settings]
    chosen = [_settings(c) for c in cells.chosen]
    line = {key: first[key] for key in [*SETUP, "init", "merge", "space"]}
    line |= {"settings": " | ".join(dict.fromkeys(settings)), "tuned on": first.tuned_on}
    line["chosen"] = " | ".join(dict.fromkeys(chosen))
    line |= {"output": first.output, "seeds": group.seed.nunique()}
    for task in suite:
        cell = group[group.task == task]
        flag = bool(cell.degenerate.any())
        line[task] = (cell.value.mean(), cell.value.std(), len(cell), flag)
    complete = group.groupby("seed").task.nunique() == len(suite)
    for name, values in {"average": group.value, "kept": group.kept}.items():
        a_seed = values.groupby(group.seed).mean(numeric_only=True)[complete]
        if name == "kept":
            a_seed = a_seed[values.notna().groupby(group.seed).all()[complete]]
        line[name] = (a_seed.mean(), a_seed.std(), len(a_seed), False)
    return line


def _settings(settings: dict) -> str:
    kept = {k: v for k, v in settings.items() if k != "space" and v is not None}
    return " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in kept.items())


def shown(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The lines as text, sorted; columns that say the same everywhere move to the footnotes."""
    order = table["merge"].map(ORDER).fillna(0)
    table = table.assign(order=order).sort_values(
        ["setup", "order", "merge", "init"], kind="stable"
    )
    table = table.drop(columns="order").reset_index(drop=True)
    telling = {name: _telling(group) for name, group in table.groupby("merge")}
    table["settings"] = [
        line.chosen if telling[line["merge"]] else line.settings for _, line in table.iterrows()
    ]
    table = table.drop(columns="chosen")
    notes = [f"{key}: {table[key].iloc[0]}" for key in SETUP if table[key].nunique() == 1]
    keep = [c for c in table if c not in SETUP or table[c].nunique() > 1]
    if (table.seeds == 1).all():
        keep.remove("seeds")
    text = table[keep].copy()
    for column in keep:
        if isinstance(table[column].iloc[0], tuple):
            text[column] = table[column].map(_cell)
    return text, notes


def _telling(lines: pd.DataFrame) -> bool:
    """Whether what a search chose tells the lines of one method apart: the rest is alike."""
    rest = {
        " ".join(s for s in settings.split() if s not in chosen.split())
        for settings, chosen in zip(lines.settings, lines.chosen)
    }
    return len(rest) == 1 and lines.chosen.ne("").all()


def _cell(value) -> str:
    if not isinstance(value, tuple) or value[0] != value[0]:
        return "—"
    mean, std, seeds, degenerate = value
    spread = f" ± {std:.1f}" if seeds > 1 else ""
    return f"{mean:.1f}{spread}{'*' if degenerate else ''}"


FOOTNOTE = (
    "Headline metric of each task in percent, each task with its own head. average: mean over "
    "tasks. kept: merged / its own single-task adapter, per task, then the mean. *: the model "
    "answers the same for every row (a correlation then counts as 0)."
)


def write_tables(results: Path | str) -> str:
    """Writes `table.csv`, `table.md`, `table.tex` from a folder's rows; returns the text table.

    Raises:
        ValueError: no rows.
    """
    results = Path(results)
    rows = read_rows(results)
    if rows.empty:
        raise ValueError(f"{results}/rows holds no rows yet")
    table = lines(rows)
    text, notes = shown(table)
    foot = "; ".join([*notes, FOOTNOTE])
    flat = table.copy()
    for column in table:
        if isinstance(table[column].iloc[0], tuple):
            parts = table[column].map(lambda v: v if isinstance(v, tuple) else (None, None))
            flat[column], flat[f"{column} std"] = parts.str[0], parts.str[1]
    flat.to_csv(results / "table.csv", index=False, float_format="%.4f")
    (results / "table.md").write_text(
        text.to_markdown(index=False, disable_numparse=True) + f"\n\n{foot}\n"
    )
    (results / "table.tex").write_text(latex(table, text, foot))
    return text.to_string(index=False) + f"\n\n{foot}"


MEANS = (
    "Means over modules, tasks and seeds, by stage of training; definitions in "
    "`conf/diagnostics/layers.yaml`. own: a task's adapter on its own inputs; "
    "foreign: on another's."
)


def write_report(results: Path | str) -> str:
    """The tables of a results folder and, where there are diagnostics, their means and figures."""
    text = write_tables(results)
    diagnostics = read_rows(results, "diagnostics")
    if not diagnostics.empty:
        from osrm_exp.diagnostics import summary, tidy  # torch and matplotlib: seconds to import
        from osrm_exp.report.figures import write_figures

        diagnostics = tidy(diagnostics)
        table = summary(diagnostics).to_markdown(floatfmt=".3f")
        (Path(results) / "diagnostics.md").write_text(f"{table}\n\n{MEANS}\n")
        write_figures(Path(results), diagnostics)
    return text


def latex(table: pd.DataFrame, text: pd.DataFrame, foot: str) -> str:
    """A booktabs table; the best merged value of every column in bold."""
    text = text.copy()
    merged = ~text["merge"].isin(ORDER)
    for column in (c for c in text if isinstance(table[c].iloc[0], tuple)):
        numbers = pd.to_numeric(text[column].str.extract(r"^(-?[\d.]+)")[0])[merged]
        if numbers.notna().any():
            best = merged & text[column].eq(text.loc[numbers.idxmax(), column])
            text.loc[best, column] = "\\textbf{" + text.loc[best, column] + "}"
    escaped = text.rename(columns=_escape).map(_escape)
    body = escaped.style.hide(axis="index").to_latex(hrules=True)
    return f"% needs \\usepackage{{booktabs}}\n{body}% {foot}\n"


def _escape(value) -> str:
    for mark, plain in {"_": "\\_", "%": "\\%", "&": "\\&", "±": "$\\pm$", "—": "--"}.items():
        value = str(value).replace(mark, plain)
    return value


def main(folder: str, baseline: str | None = None) -> None:
    """Rebuilds a folder's tables and figures; against a baseline init also `paired.md`."""
    print(write_report(folder))
    if baseline:
        from osrm_exp.report.paired import paired_text  # SciPy's statistics: not at every start

        text = paired_text(read_rows(folder), baseline)
        (Path(folder) / "paired.md").write_text(f"{text}\n")
        print(f"\n{text}")
