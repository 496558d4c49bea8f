"""Every notebook runs from the committed rows."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("file", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda f: f.stem)
def test_a_notebook_runs_from_committed_rows(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    cells = json.loads(file.read_text())["cells"]
    space = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), space)
