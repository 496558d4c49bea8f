"""Tables from rows alone, as text, Markdown and CSV. `python -m osrm_exp.report DIR` writes them.

They lead with raw scores, then what merging costs: `lost` and `recovered`. The literature's
`kept` (its "normalized" score) is in the CSV alone: a model without any adapter keeps half of it.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from osrm_exp.report.captions import BOLD, LOST, NO_EXPERT, RECOVERED, UNKNOWN, caption, legend
from osrm_exp.report.frame import ORDER, SETUP, Score, by_task, lines
from osrm_exp.report.rows import no_rows
from osrm_exp.report.scores import MARKS, scores
from osrm_exp.report.sealed import in_place

HIDDEN = ["line", "given", "chosen", "telling", "shared", "kept"]
NOTHING = {MARKS[mark][0] for mark in ("constant", "below")}  # is known by such a score
SMALLER = ["lost"]  # is better
NO_SCORE = Score(float("nan"), float("nan"), 0)


def shown(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The lines as text; what is the same everywhere, or in all of a merge, is a note."""
    searched = (table.chosen != "").groupby(table["merge"]).transform("all")
    several = table.groupby("merge").given.transform("nunique") > 1
    apart = searched | several
    settings = table.settings.mask(apart, table.telling)
    notes = [f"{key}: {table[key].iloc[0]}" for key in SETUP if table[key].nunique() == 1]
    left = table[apart & (table.shared != "")].drop_duplicates("merge")
    notes += [f"every {merge}: {of}" for merge, of in zip(left["merge"], left.shared)]
    text = table.assign(settings=settings).drop(columns=_hidden(table))
    for column in score_columns(table, text):
        text[column] = text[column].map(cell)
    return text, notes


def _hidden(table: pd.DataFrame) -> list[str]:
    """The columns that say nothing of one line."""
    silent = {
        **{key: table[key].nunique() == 1 for key in SETUP},
        "heads": (table["heads"] == "own").all(),
        "seeds": (table.seeds == 1).all(),
        "search": table.search.isin(["", "grid"]).all(),
        "data": (table["data"] == "").all(),
        "lost": table.lost.str[0].isna().all(),
        "recovered": table.recovered.str[0].isna().all(),
    }
    return [*HIDDEN, *(column for column, hides in silent.items() if hides)]


def score_columns(table: pd.DataFrame, among: pd.DataFrame | None = None) -> list[str]:
    """The columns of a table that hold a `Score`."""
    columns = table.columns if among is None else among.columns
    return [c for c in columns if table[c].map(type).eq(Score).any()]


def cell(score: Score | float) -> str:
    """`58.1 ± 1.1*`; a dash where there is no number."""
    if not isinstance(score, Score) or score.mean != score.mean:
        return "—"
    spread = f" ± {score.std:.1f}" if score.seeds > 1 else ""
    return f"{score.mean:.1f}{spread}{score.marks}"


def best(table: pd.DataFrame) -> pd.DataFrame:
    """Where the best merged score of a column stands, among what can be compared.

    That is what shares a setup and its heads, one result for all tasks, over as many seeds as any.
    Where the best score is one without any knowledge of the task, none is.
    """
    columns = score_columns(table)
    found = pd.DataFrame(False, table.index, columns)
    merged = ~table["merge"].isin(ORDER) & table.output.str.startswith("shared")
    for _, group in table[merged].groupby(["setup", "heads"]):
        group = group[group.seeds == group.seeds.max()]
        for column in columns:
            has = group[column].map(lambda s: s.seeds if isinstance(s, Score) else 0)
            if has.max() > 0:
                means = group[column][has == has.max()].map(lambda s: round(s.mean, 1))
                top = means.min() if column in SMALLER else means.max()
                first = group.loc[means.index[means == top], column]
                found.loc[first.index, column] = [not NOTHING & {*s.marks} for s in first]
    return found


def markdown(table: pd.DataFrame, text: pd.DataFrame) -> str:
    """A Markdown table, numbers to the right, the best of a column in bold."""
    bold = best(table)
    text = text.map(lambda v: str(v).replace("|", "\\|"))
    numbers = [c for c in text if c in bold]
    for column in numbers:
        text.loc[bold[column], column] = "**" + text.loc[bold[column], column] + "**"
    align = ["right" if c in [*numbers, "seeds"] else "left" for c in text]
    return text.to_markdown(index=False, disable_numparse=True, colalign=align)


def footnote(found: pd.DataFrame, text: pd.DataFrame, notes: list[str]) -> str:
    """Everything that a reader needs to trust a table: setup, caption, terms, marks."""
    terms = [caption(found), LOST if "lost" in text else NO_EXPERT]
    terms.append(RECOVERED if "recovered" in text else UNKNOWN)
    terms.append(legend(text.to_csv()))
    return ". ".join(["; ".join(notes), " ".join(t for t in terms if t)])


def emphasis(table: pd.DataFrame) -> str:
    """What is said where the best is in bold."""
    return f" {BOLD}" if best(table).any(axis=None) else ""


def flat(table: pd.DataFrame) -> pd.DataFrame:
    """Means and standard deviations in columns of their own."""
    out = table.drop(columns=["given", "telling", "shared"])
    for column in score_columns(table):
        cells = table[column].map(lambda s: s if isinstance(s, Score) else NO_SCORE)
        out[column], out[f"{column} std"] = cells.str[0], cells.str[1]
    return out


def write_tables(results: Path | str, rows: pd.DataFrame, searches: pd.DataFrame) -> str:
    """Writes `table.csv`, `tasks.csv`, `table.md`, `table.tex`; returns the text table.

    Raises:
        ValueError: no rows.
    """
    from osrm_exp.report.latex import latex

    results = Path(results)
    if rows.empty:
        raise ValueError(no_rows(results))
    found = scores(rows)
    table = lines(found, searches)
    text, notes = shown(table)
    foot = footnote(found, text, notes)
    texts = {
        "table.csv": flat(table).to_csv(index=False, float_format="%.4f"),
        "tasks.csv": by_task(found).to_csv(index=False, float_format="%.4f"),
        "table.md": f"{markdown(table, text)}\n\n{foot}{emphasis(table)}\n",
        "table.tex": latex(table, text, foot + emphasis(table), title(results, found)),
    }
    for name, content in texts.items():
        with in_place(results / name) as scratch:  # a full disk leaves the former table whole
            scratch.write_text(content)
    return f"{text.to_string(index=False)}\n\n{foot}"


def title(results: Path, found: pd.DataFrame) -> str:
    """What a table is called by: its folder, and the experiment where that does not say it."""
    name, experiment = results.resolve().name, found.experiment.iloc[0]
    return name if experiment.endswith(name) else f"{experiment}-{name}"
