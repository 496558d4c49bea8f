"""Every committed row is found again: its own overrides compose the cell that it names."""

import json
from pathlib import Path

import pytest

from osrm_exp.compose import cell_from, configuration

FILES = sorted((Path(__file__).parents[1] / "results").glob("*/rows/*.jsonl"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parts[-3]}/{file.stem}")
def test_a_committed_row_is_found_by_its_own_overrides(file):
    row = json.loads(file.read_text().splitlines()[0])
    assert cell_from(configuration(row["overrides"])).digest == row["cell"] == file.stem
