"""Rows of a task as they lie: generated, in local files, on the hub; checked one by one.

Local files are read as they are, without a cache that could know an older one.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from osrm_exp.hub import fetched
from osrm_exp.spec import Task
from osrm_exp.tasks import mini
from osrm_exp.tasks.prompts import Row

Columns = dict[str, list[Any]]
NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")  # 007 is a name
LONGEST = 2**31 - 1  # characters of a field: the csv module stops at 131072


def rows_of(task: Task, split: str) -> list[Row]:
    """The rows of a split with texts and a label that the task can use, up to its `cap`.

    Raises:
        ValueError: a missing column, a text that is none, a label that is none of the task's.
    """
    columns = read(task, split)
    for column in (*task.text, task.label):
        if column not in columns:
            raise ValueError(
                f"{task.name}/{split} has no column {column!r}; it has: {', '.join(columns)}"
            )
    found = zip(columns[task.label], *(columns[column] for column in task.text))
    kept = [(i, label, texts) for i, (label, *texts) in enumerate(found) if label not in task.drop]
    rows = [_row(task, split, *one) for one in kept[: getattr(task.cap, split)]]
    return task.kind.gather(task, rows)


def _row(task: Task, split: str, number: int, label: Any, texts: list[Any]) -> Row:
    where = f"{task.name}/{split} holds"
    for column, text in zip(task.text, texts):
        if not isinstance(text, str):
            raise ValueError(
                f"{where} {text!r} in the text column {column!r}, row {number} (from 0): "
                "a text is a string"
            )
        if not _is_unicode(text):
            raise ValueError(
                f"{where} half a character (a lone surrogate) in the text column {column!r}, row "
                f"{number} (from 0): write the file as UTF-8 again"
            )
    try:
        return Row(number, tuple(texts), task.kind.label(task, label))
    except ValueError as error:
        raise ValueError(
            f"{where} the label {label!r} in column {task.label!r}, row {number} (from 0), which "
            f"is {error}; dataset.tasks.{task.name}.drop=[…] leaves rows with a label out"
        ) from None


def _is_unicode(text: str) -> bool:
    try:
        return bool(text.encode()) or text == ""
    except UnicodeEncodeError:
        return False


def read(task: Task, split: str) -> Columns:
    """All columns of one split.

    Raises:
        ValueError: the rows cannot be had; the sentence says what was tried and what helps.
    """
    name, config = getattr(task, split), task.config or task.name
    if task.path == "generated":
        return mini.generate(config, split, getattr(task.rows, split), seed=task.seed)
    if Path(task.path).is_dir():
        return read_files(Path(task.path, config), name, "" if task.free else task.label)

    def load() -> Columns:
        from datasets import load_dataset  # wants a writable HOME: not for local files

        return load_dataset(task.path, config, revision=task.revision, split=name).to_dict()

    return fetched(
        task.path, load,
        f"give local copies with dataset.path=DIR (DIR/{config}/{name}.parquet) and "
        "model.path=DIR (a checkpoint folder)",
    )  # fmt: skip


def read_files(folder: Path, split: str, label: str) -> Columns:
    """All columns of a split in a folder: one file, or the hub's shards one after the other.

    Raises:
        ValueError: no file, one in two formats, a lost shard, a file that cannot be read.
    """
    whole: Columns = {}
    for file in files_of(folder, split):
        try:
            columns = READERS[file.suffix](file)
        except (OSError, ValueError, RecursionError, csv.Error) as error:  # Arrow's are ValueErrors
            raise ValueError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
        if whole and columns.keys() != whole.keys():
            raise ValueError(f"{file} has other columns than the shards before it")
        if file.suffix == ".csv" and label in columns:
            columns[label] = [_number(value) for value in columns[label]]
        for name, values in columns.items():
            whole.setdefault(name, []).extend(values)
    return whole


def files_of(folder: Path, split: str) -> list[Path]:
    """`split.parquet` (or .csv, .jsonl, .json), or `split-00000-of-00002.parquet` and so on.

    Raises:
        ValueError: none of them, several, or a shard missing.
    """
    shard = re.compile(rf"{re.escape(split)}(?:-\d+-of-(\d+)(?:-\w+)?)?")
    of = {p: shard.fullmatch(p.stem) for p in sorted(folder.glob("*")) if p.suffix in READERS}
    counts = {file: int(match[1] or 1) for file, match in of.items() if match}
    _check_whole(counts, folder, split)
    return list(counts)


def _check_whole(counts: dict[Path, int], folder: Path, split: str) -> None:
    """Whether there are as many files of one format as each of them says that there are."""
    if not counts:
        raise ValueError(
            f"there is no file {folder / split}.parquet, nor .csv, .jsonl, .json or shards "
            f"({split}-00000-of-00001.parquet)"
        )
    formats = {file.suffix for file in counts}
    if len(formats) > 1 or set(counts.values()) != {len(counts)}:
        names = ", ".join(path.name for path in counts)
        raise ValueError(f"{folder} has no one {split} split: {names}; keep one whole set of files")


def _parquet(file: Path) -> Columns:
    from pyarrow import parquet

    table = parquet.ParquetFile(file).read()
    _check_once(table.column_names)
    decimal = [c.name for c in table.schema if str(c.type).startswith("decimal")]
    columns = table.to_pydict()
    return columns | {
        name: [None if one is None else float(one) for one in columns[name]] for name in decimal
    }


def _csv(file: Path) -> Columns:
    csv.field_size_limit(LONGEST)
    with file.open(newline="", encoding="utf-8-sig") as lines:
        table = [row for row in csv.reader(lines, strict=True) if row]
    if not table:
        raise ValueError("it has no header")
    _check_once(table[0])
    for number, row in enumerate(table[1:]):
        if len(row) != len(table[0]):
            raise ValueError(f"row {number} (from 0) has {len(row)} fields, not {len(table[0])}")
    return {name: [row[i] for row in table[1:]] for i, name in enumerate(table[0])}


def _json_lines(file: Path) -> Columns:
    with file.open(encoding="utf-8-sig") as lines:
        table = [_object(i, line) for i, line in enumerate(lines, 1) if line.strip()]
    names = dict.fromkeys(name for row in table for name in row)
    return {name: [row.get(name) for row in table] for name in names}


def _object(number: int, line: str) -> dict[str, Any]:
    try:
        if isinstance(found := json.loads(line, object_pairs_hook=_pairs), dict):
            return found
    except json.JSONDecodeError:
        pass
    raise ValueError(f"line {number} is no JSON object; JSON lines has one a line")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_once([name for name, _ in pairs])
    return dict(pairs)


def _check_once(names: Sequence[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"it has two columns {twice[0]!r}, of which one would be lost")


def _number(value: str) -> str | int | float:
    """A CSV file's label: a number where it reads as one, as the other formats would hold it."""
    if not NUMBER.fullmatch(value):
        return value
    return int(value) if value.lstrip("+-").isdigit() and len(value) < 300 else float(value)


READERS: dict[str, Callable[[Path], Columns]] = {
    ".parquet": _parquet, ".csv": _csv, ".jsonl": _json_lines, ".json": _json_lines,
}  # fmt: skip


def doubts(task: Task, splits: dict[str, list[Row]]) -> Iterable[str]:
    """What is odd about the rows of a task and no error, in a few words each."""
    seen = {name: {row.texts for row in rows} for name, rows in splits.items()}
    if both := len(seen["train"] & seen["validation"]):
        yield f"texts in both train and validation: {both}"
    for name, rows in splits.items():
        yield from _doubts_of(task, name, rows)


def _doubts_of(task: Task, split: str, rows: list[Row]) -> Iterable[str]:
    present = {row.label for row in rows}
    if lacking := [label for i, label in enumerate(task.labels or ()) if i not in present]:
        yield f"{split} has no row of {', '.join(lacking)}"
    if empty := [row.number for row in rows if "" in map(str.strip, row.texts)]:
        yield f"empty texts in {split}: {len(empty)}, the first in row {empty[0]}"
