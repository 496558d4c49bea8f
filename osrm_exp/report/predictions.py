"""What a cell's merged model answered for every reported row: `predictions/<cell>.parquet`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osrm_exp.report.sealed import in_place

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["task", "row", "label", "prediction"]


def predictions_file(results: Path | str, digest: str) -> Path:
    """Where a cell's predictions lie."""
    return Path(results) / "predictions" / f"{digest}.parquet"


def write_predictions(
    results: Path | str, digest: str, predictions: Iterable[Mapping[str, Any]]
) -> Path:
    """Writes a cell's predictions: `task`, `row` of the reported split, `label`, `prediction`.

    Classes are numbers (-1: none was read from what was written); a regression's prediction is its
    score, that of a text its share of the headline, where the label is 1. Pages carry checksums.
    """
    import pyarrow as pa
    from pyarrow import parquet

    file = predictions_file(results, digest)
    table = pa.Table.from_pylist([{key: one[key] for key in COLUMNS} for one in predictions])
    with in_place(file) as scratch:
        parquet.write_table(table, scratch, compression="zstd", write_page_checksum=True)
    return file


def read_predictions(results: Path | str, cells: Iterable[str]) -> pd.DataFrame:
    """The predictions of those cells that left any, with their `cell`.

    Raises:
        ValueError: a file that is not what was written.
    """
    import pandas as pd
    import pyarrow as pa
    from pyarrow import parquet

    found = [pd.DataFrame(columns=["cell", *COLUMNS])]
    for cell in cells:
        file = predictions_file(results, cell)
        if not file.is_file():
            continue
        try:
            table = parquet.read_table(file, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file} is damaged ({error}); remove it and run again") from None
        found.append(table.to_pandas().assign(cell=cell))
    return pd.concat(found[1:] or found, ignore_index=True)
