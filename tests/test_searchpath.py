"""Configs from outside the package, wherever configs are read."""

import json
import os

import pytest

from osrm_exp import pipeline, searchpath
from osrm_exp.compose import cell_from
from osrm_exp.export.files import cell_of
from osrm_exp.merging.api import configured as method
from osrm_exp.overrides import public
from osrm_exp.report.rows import write_rows

MINE = """\
# Mine: the sum.
_target_: osrm_exp.merging.weighted.task_arithmetic
scaling: 0.7
grid: {scaling: [0.7]}
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder of own configs, of an odd name."""
    monkeypatch.setenv(searchpath.VARIABLE, "")
    folder = tmp_path / "my übung"
    (folder / "merge").mkdir(parents=True)
    target = method("task_arithmetic").call.target
    text = MINE.replace("osrm_exp.merging.weighted.task_arithmetic", target)
    (folder / "merge" / "mine.yaml").write_text(text)
    (folder / "merge" / "ties.yaml").write_text(text)  # the package's comes first
    return folder


def test_every_way_to_name_a_folder_is_the_variable(mine):
    ways = (["--config-dir", str(mine)], [f"--config-dir={mine}"], ["-cd", str(mine)],
            [f"hydra.searchpath=['file://{mine}']"])  # fmt: skip
    for way in ways:
        os.environ[searchpath.VARIABLE] = ""
        assert searchpath.typed(["merge=mine", *way, "-m"]) == ["merge=mine", "-m"]
        assert searchpath.named() == [str(mine)], way
        assert searchpath.override() == [f"hydra.searchpath=['file://{mine}']"]


def test_own_configs_compose_merge_and_are_remembered_in_rows(mine, configured, tmp_path):
    with pytest.raises(ValueError, match="no merge 'mine'"):
        method("mine")
    searchpath.name([str(mine)])
    assert method("mine").settings == {"scaling": 0.7}
    assert "scaling" in method("ties").grid and "density" in method("ties").settings
    cell = cell_from(configured("roberta", "merge=mine"))
    row = pipeline.said_of(cell, cell.merge)
    assert row["conf"] == [public(str(mine))] and str(tmp_path.parent) not in json.dumps(row)
    assert row["settings"] == {"scaling": 0.7}
    file = write_rows(tmp_path, cell.digest, [row])
    added = [one for one in cell.overrides if "path" in one]
    assert cell_of(file, added)[0].digest == cell.digest  # as export does
    os.environ[searchpath.VARIABLE] = ""
    with pytest.raises(ValueError, match=f"{searchpath.VARIABLE}=DIR names their folder"):
        cell_of(file, added)


def test_a_package_can_be_named(monkeypatch):
    monkeypatch.setenv(searchpath.VARIABLE, "pkg://osrm_exp")
    assert searchpath.folders()[1].name == "osrm_exp"


@pytest.mark.parametrize("wrong", ["/nowhere", "pkg://no.such.thing"])
def test_a_folder_that_is_not_there_is_named(monkeypatch, wrong):
    monkeypatch.setenv(searchpath.VARIABLE, wrong)
    with pytest.raises(ValueError, match=f"names {wrong}"):
        searchpath.override()
