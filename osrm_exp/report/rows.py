"""Rows: the only truth. One JSONL file a cell, named by the cell's digest, whole or not there.

`rows/` holds scores, one number a row; `diagnostics/` holds a row a module and metric, its numbers
in a list over tasks or pairs of tasks (`osrm_exp.diagnostics.tidy` spreads them out).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd


def rows_file(results: Path | str, digest: str, kind: str = "rows") -> Path:
    """Where a cell's rows lie."""
    return Path(results) / kind / f"{digest}.jsonl"


def write_rows(
    results: Path | str, digest: str, rows: Iterable[Mapping[str, Any]], kind: str = "rows"
) -> Path:
    """Writes a cell's rows beside their place and renames them into it."""
    file = rows_file(results, digest, kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        with scratch.open("w") as out:
            out.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows)
            out.flush()
            os.fsync(out.fileno())
        scratch.rename(file)
    finally:
        scratch.unlink(missing_ok=True)
    return file


def read_rows(results: Path | str, kind: str = "rows") -> pd.DataFrame:
    """All rows of a results folder, one line a row; `kind` is `rows` or `diagnostics`.

    Raises:
        ValueError: a file that is not rows.
    """
    rows = []
    for file in sorted((Path(results) / kind).glob("*.jsonl")):
        try:
            rows += [json.loads(line) for line in file.read_text().splitlines()]
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is damaged ({error}); remove it and run again") from None
    return pd.DataFrame(rows)
