"""Every notebook runs from the committed rows, and its page shows the cells that it has today."""

import re
import runpy
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
FILES = sorted(NOTEBOOKS.glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_notebook_runs_from_committed_rows(file, monkeypatch):
    monkeypatch.chdir(NOTEBOOKS)
    runpy.run_path(str(file))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_notebook_is_shown_as_it_is_with_its_output(file):
    page = file.with_suffix(".md").read_text()
    cells = re.split(r"^# %%(?: \[markdown\])?\n", file.read_text(), flags=re.MULTILINE)[1:]
    prose = [c for c in cells if c.startswith("# ")]
    for cell in cells:
        text = re.sub(r"^# ?", "", cell, flags=re.MULTILINE) if cell in prose else cell
        assert text.strip() in page, "render it again, see notebooks/README.md"
    assert page.count("<table") >= 2
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", page):
        assert (NOTEBOOKS / picture).is_file(), picture


def test_there_are_notebooks():
    assert {f.stem for f in FILES} >= {"paper_tables", "osrm_in_a_layer", "choosing_a_merge"}
