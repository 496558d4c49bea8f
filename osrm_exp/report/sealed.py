"""A file of JSON lines, sealed: whole or not there, and its last line tells whether it still is.

The last line holds the number of the lines before it and their SHA-256. Files of schema 1 have no
such line.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SEAL = {"rows", "sha256"}


def seal(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows beside their place and renames them into it."""
    with in_place(file) as scratch, scratch.open("wb") as out:
        lines = [_line(row) for row in rows]
        out.writelines(lines)
        out.write(_line({"rows": len(lines), "sha256": _sha256(b"".join(lines))}))
        out.flush()
        os.fsync(out.fileno())


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


def unsealed(file: Path) -> list[bytes]:
    """A file's lines, one a row.

    Raises:
        ValueError: the file is not what was written.
    """
    *lines, last = file.read_bytes().splitlines(keepends=True) or [b""]
    try:
        end = json.loads(last)
        old = set(end) != SEAL
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
