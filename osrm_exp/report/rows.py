"""Rows: the only truth. One JSONL file a cell, named by the cell's digest, whole or not there.

`rows/` holds scores, one number a row; `diagnostics/` a row a module and metric, its numbers in a
list over tasks or pairs of tasks (`osrm_exp.diagnostics.tidy` spreads them out); `searches/` a row
a candidate: `{cell, point, score, split}`. A file's last line holds the number of its rows and
their SHA-256, so that one cut short or altered is seen. `predictions/` is in
`osrm_exp.report.predictions`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("osrm_exp")
TRAILER = {"rows", "sha256"}


def rows_file(results: Path | str, digest: str, kind: str = "rows") -> Path:
    """Where a cell's rows lie."""
    return Path(results) / kind / f"{digest}.jsonl"


def write_rows(
    results: Path | str, digest: str, rows: Iterable[Mapping[str, Any]], kind: str = "rows"
) -> Path:
    """Writes a cell's rows beside their place and renames them into it."""
    file = rows_file(results, digest, kind)
    with in_place(file) as scratch, scratch.open("wb") as out:
        lines = [_line(row) for row in rows]
        out.writelines(lines)
        out.write(_line({"rows": len(lines), "sha256": _sha256(b"".join(lines))}))
        out.flush()
        os.fsync(out.fileno())
    return file


@contextmanager
def in_place(file: Path) -> Iterator[Path]:
    """A scratch file that becomes `file` if the block ends well, and is gone if it does not."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        yield scratch
        scratch.rename(file)
    finally:
        scratch.unlink(missing_ok=True)


def is_done(file: Path | str) -> bool:
    """Whether a file of rows is there and whole; a damaged one is named in the log."""
    file = Path(file)
    if not file.is_file():
        return False
    try:
        _whole(file)
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
    return pd.DataFrame([json.loads(line) for file in files for line in _whole(file)])


def rows_in(file: Path) -> list[dict[str, Any]]:
    """The rows of one file.

    Raises:
        ValueError: it is not a file of rows, or not as it was written.
    """
    try:
        rows = [json.loads(line) for line in _whole(file)]
        return [row for row in rows if row["cell"]]
    except (OSError, LookupError, TypeError) as error:
        raise ValueError(f"{file} is not a file of rows ({type(error).__name__})") from None


def _whole(file: Path) -> list[bytes]:
    """A file's lines without the trailer, which files of schema 1 lack.

    Raises:
        ValueError: the file is not what was written.
    """
    *lines, last = file.read_bytes().splitlines(keepends=True) or [b""]
    try:
        end = json.loads(last)
        old = set(end) != TRAILER
        if old:
            lines.append(last)
            whole = all(json.loads(line).get("schema", 1) < 2 for line in lines)
        else:
            whole = end == {"rows": len(lines), "sha256": _sha256(b"".join(lines))}
    except (ValueError, AttributeError, TypeError) as error:  # not JSON, or no object
        raise ValueError(_damaged(file, str(error))) from None
    if not (whole and last.endswith(b"\n")):
        raise ValueError(_damaged(file, "cut short" if old else "altered since it was written"))
    return lines


def _damaged(file: Path, how: str) -> str:
    return f"{file} is damaged ({how}); remove it and run the same command again"


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, sort_keys=True) + "\n").encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
