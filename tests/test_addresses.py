"""Every committed row is found again: its own overrides compose the cell that it names.

Of cells that differ in their seed alone, two are composed.
"""

from pathlib import Path

import pytest

from osrm_exp import needs
from osrm_exp.compose import cell_from, configuration
from osrm_exp.overrides import KEPT_BACK
from osrm_exp.report.rows import rows_in

RESULTS = Path(__file__).parents[1] / "results"
FILES = sorted(RESULTS.glob("**/rows/*.jsonl"))


def told_apart(files):
    """The first and the last file of every line of every folder."""
    lines = {}
    for file in files:
        lines.setdefault((file.parent, rows_in(file)[0]["line"]), []).append(file)
    return [file for seeds in lines.values() for file in dict.fromkeys([seeds[0], seeds[-1]])]


@pytest.mark.parametrize(
    "file", told_apart(FILES), ids=lambda file: f"{file.parts[-3]}/{file.stem}"
)
def test_a_committed_row_is_found_by_its_own_overrides(file):
    row = rows_in(file)[0]
    overrides = [KEPT_BACK.sub("elsewhere", one) for one in row["overrides"]]  # inputs are known
    cell = cell_from(configuration(overrides), row["inputs"])
    assert cell.digest == row["cell"] == file.stem
    assert (cell.line, cell.setup) == (row["line"], row["setup"])
    assert [one.digest for one in needs.fine_tunes(cell)] == row["adapters"]


def test_there_are_rows_to_find_and_diagnostics_belong_to_them():
    assert len(FILES) >= 92
    cells = {file.stem for file in FILES}
    for file in RESULTS.glob("**/diagnostics/*.jsonl"):
        assert rows_in(file)[0]["cell"] in cells
