"""The page of methods names every method, once, and nothing else."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from osrm_exp import CONF
from osrm_exp.merging.api import configured

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
METHODS = sorted(file.stem for file in (CONF / "merge").glob("*.yaml"))
PAPERS = {
    number
    for name in METHODS
    for number in re.findall(r"\d{4}\.\d{5}", (CONF / "merge" / f"{name}.yaml").read_text())
}
TABLE = r"^\| merge= \|(.*)\|\n\|[-|]+\|\n((?:\|.*\|\n)+)"


def rows() -> list[dict[str, str]]:
    """The rows of all tables of methods, by the words of their header."""
    found = []
    for header, body in re.findall(TABLE, PAGE.read_text(), flags=re.MULTILINE):
        names = ["merge=", *(cell.strip() for cell in header.split("|"))]
        for line in body.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert len(cells) == len(names), line
            found.append(dict(zip(names, cells)))
    return found


def test_every_method_is_in_the_page_once_and_vice_versa():
    assert sorted(row["merge="].strip("`") for row in rows()) == METHODS


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["merge="].strip("`"))
def test_a_row_agrees_with_the_config(row):
    method = configured(row["merge="].strip("`"))
    assert row["space"] == method.space
    for statistic in method.statistics:
        assert f"`{statistic}`" in row["statistics"]
    assert set(re.findall(r"\d{4}\.\d{5}", row["paper"])) <= PAPERS
    assert all(row.values())


def test_the_page_of_initialisations_names_every_one_and_its_statistics():
    page = (PAGE.parent / "inits.md").read_text()
    found = dict(re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|", page, flags=re.MULTILINE))
    assert sorted(found) == sorted(file.stem for file in (CONF / "init").glob("*.yaml"))
    for name, statistics in found.items():
        declared = OmegaConf.load(CONF / "init" / f"{name}.yaml").get("statistics") or {}
        assert set(declared) == set(re.findall(r"own(?!, PEFT)|others", statistics)), name
