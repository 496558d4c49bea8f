"""Rows: the only truth. One JSONL file a cell, named by the cell's digest, whole or not there.

`rows/` holds scores, one number a row; `diagnostics/` a row a module and metric, its numbers in a
list over tasks or pairs of tasks (`osrm_exp.diagnostics.tidy` spreads them out); `searches/` a row
a candidate: `{cell, point, score, split}`. `predictions/` is in `osrm_exp.report.predictions`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osrm_exp.report.sealed import seal, unsealed

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("osrm_exp")


def rows_file(results: Path | str, digest: str, kind: str = "rows") -> Path:
    """Where a cell's rows lie."""
    return Path(results) / kind / f"{digest}.jsonl"


def no_rows(results: Path | str) -> str:
    """What to say of a folder without rows."""
    folder = Path(results)
    return f"{folder}/rows holds no rows yet" if folder.is_dir() else f"{folder} is not a folder"


def lowered(row: Mapping[str, Any] | pd.Series) -> str:
    """The objective that a cell's search lowered; empty where it raised scores, or none was run."""
    search = row.get("search")
    return search["name"].partition(" ")[2] if isinstance(search, Mapping) else ""


def write_rows(
    results: Path | str, digest: str, rows: Iterable[Mapping[str, Any]], kind: str = "rows"
) -> Path:
    """Writes a cell's rows beside their place and renames them into it."""
    file = rows_file(results, digest, kind)
    seal(file, rows)
    return file


def is_done(file: Path | str) -> bool:
    """Whether a file of rows is there and whole; a damaged one is named in the log."""
    file = Path(file)
    if not file.is_file():
        return False
    try:
        unsealed(file)
    except ValueError as error:
        log.warning("%s", error)
        return False
    return True


def read_rows(results: Path | str, kind: str = "rows") -> pd.DataFrame:
    """All rows of a results folder, one line a row; `kind` is `rows`, `diagnostics`, `searches`.

    Raises:
        ValueError: a file that is not rows, or not as it was written.
    """
    import pandas as pd  # half a second, which a skipped cell does not need

    files = sorted((Path(results) / kind).glob("*.jsonl"))
    return pd.DataFrame([json.loads(line) for file in files for line in unsealed(file)])


def rows_in(file: Path) -> list[dict[str, Any]]:
    """The rows of one file.

    Raises:
        ValueError: it is not a file of rows, or not as it was written.
    """
    try:
        rows = [json.loads(line) for line in unsealed(file)]
        return [row for row in rows if row["cell"]]
    except (OSError, LookupError, TypeError) as error:
        raise ValueError(f"{file} is not a file of rows ({type(error).__name__})") from None
