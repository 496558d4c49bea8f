"""What others published, beside ours and never among it: `--published FILE` of the report.

The file is one as `figures/known_results.csv`; `figures/README.md` explains its columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from osrm_exp.report.frame import lines
from osrm_exp.report.rows import no_rows, read_rows
from osrm_exp.report.scores import scores
from osrm_exp.report.tables import cell

KNOWN = ["paper", "model", "suite", "setup", "init", "merge", "task", "quantity", "value", "to",
         "source", "trust", "note"]  # fmt: skip
TRUST = ("high", "medium", "low", "wrong")
OURS = {"score": "average", "normalised": "kept"}  # a quantity and our column of it
GAIN = "gain over gaussian"
SHOWN = ["model", "setup", "init", "merge", "task", "quantity", "published", "ours", "trust",
         "source", "note"]  # fmt: skip
FOOT = (
    "Published numbers are from other code, other splits and other coefficients, and most were "
    "read second hand. Ours are of the same model, suite, init and merge, at every setting that "
    "there are rows of. Nothing here is part of a table of ours."
)


def read_known(file: Path | str) -> pd.DataFrame:
    """Published numbers, a row each, as text but for `value` and `to`.

    Raises:
        ValueError: no such file, other columns, no number, a trust that is none.
    """
    try:
        known = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    if list(known) != KNOWN:
        raise ValueError(f"{file} has the columns {', '.join(known)}; expected {', '.join(KNOWN)}")
    if not set(known.trust) <= set(TRUST):
        strange = min(set(known.trust) - set(TRUST))
        raise ValueError(f"{file}: trust is {strange!r}, choose one of {', '.join(TRUST)}")
    try:
        return known.assign(value=pd.to_numeric(known.value), to=pd.to_numeric(known.to))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def beside(known: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The published numbers of the models and suites that rows are about, and ours of the same.

    What is wrong is left out; ours is a dash where there are no rows.
    """
    found = scores(rows)
    table = lines(found)
    pairs = {*zip(found.model, found.dataset)}
    of = [pair in pairs for pair in zip(known.model, known.suite)]
    chosen = known[pd.Series(of, known.index, dtype=bool) & known.trust.ne("wrong")]
    ranges = zip(chosen.value, chosen.to)
    text = [f"{low:g}" + (f" to {high:g}" if high == high else "") for low, high in ranges]
    ours = [" / ".join(dict.fromkeys(_ours(table, one))) or "—" for _, one in chosen.iterrows()]
    return chosen.assign(published=text, ours=ours)[SHOWN]


def _ours(table: pd.DataFrame, known: pd.Series) -> Iterator[str]:
    """Every line of a table that is of the same arm and merge, in the published quantity."""
    same = ["model", "merge"]
    mine = table[(table[same] == known[same]).all(axis=1) & (table.init == known.init)]
    column = OURS.get(known.quantity) if known.task == "average" else known.task
    for _, line in mine.iterrows():
        if known.quantity in OURS and column in table:
            yield cell(line[column])
        elif known.quantity == GAIN:
            alike = table[(table.init == "gaussian") & (table["merge"] == line["merge"])]
            for _, base in alike[alike.setup == line.setup].iterrows():
                yield f"{line.average.mean - base.average.mean:+.1f}"


def write_published(results: Path | str, file: Path | str) -> str:
    """Writes `published.md` beside the tables of a results folder; returns what it says.

    Raises:
        ValueError: no rows; see `read_known`.
    """
    rows = read_rows(results)
    if rows.empty:
        raise ValueError(no_rows(results))
    table = beside(read_known(file), rows)
    if table.empty:
        return f"{file} holds nothing about these models on this suite"
    text = table.map(lambda value: str(value).replace("|", "\\|"))
    page = f"{text.to_markdown(index=False, disable_numparse=True)}\n\n{FOOT}\n"
    (Path(results) / "published.md").write_text(page)
    return page
