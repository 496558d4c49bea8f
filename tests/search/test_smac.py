"""SMAC on a toy: the rounds of Hyperband, conditions, the same history, a kill."""

import json

import pytest
from toy_problem import Toy

from osrm_exp.search import smac

SPACE = {"rule": ("linear", "ties"), "w": (0.0, 1.0), "k": (1, 9), "on": (None, True)}
OPTIONS = {"trials": 14, "startup": 3, "least": 1, "eta": 3}
START = {"rule": "linear", "w": 0.5, "on": True}


def judge(point):
    return -((point.get("w", 0.9) - 0.3) ** 2) - abs(point.get("k", 5) - 6) / 9


def toy(folder, **options) -> Toy:
    folder.mkdir(exist_ok=True)
    problem = Toy(folder, SPACE, judge, start=START, **options)
    problem.sizes, problem.cell.merge.grid = [9, 4], {}  # all is the family's
    problem.family.conditions = {"w": ("rule", "linear"), "k": ("rule", "ties")}
    return problem


def told(problem):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in problem.history.entries]


def test_a_search_repeats_goes_on_after_a_kill_and_is_never_made_twice(tmp_path):
    pytest.importorskip("smac")
    straight = toy(tmp_path / "straight")
    found = smac(straight, **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        smac(toy(tmp_path / "cut", dies=6), **OPTIONS)
    resumed = toy(tmp_path / "cut")
    assert smac(resumed, **OPTIONS) == found and told(resumed) == told(straight)
    assert resumed.made == straight.made - 5
    again = toy(tmp_path / "straight")
    assert smac(again, **OPTIONS) == found and again.made == 0
    _are_rounds(straight)
    _are_conditional(straight)
    _is_best_on_all_rows(straight, found)


def _are_rounds(problem):
    """Of 1, 3 and all 9 rows, whole numbers; a point with a part of the rows only once."""
    rows = [entry.get("rows") for entry in problem.history.entries]
    assert {json.dumps(one) for one in rows} == {"[null, 1, null]", "[null, 3, null]", "null"}
    made = [json.dumps([entry["point"], entry.get("rows")]) for entry in problem.history.entries]
    assert len(set(made)) == len(made)


def _are_conditional(problem):
    for entry in problem.history.entries:
        point = entry["point"]
        assert set(point) == {"rule", "on", "w" if point["rule"] == "linear" else "k"}
        assert type(point.get("w", 0.5)) is float and type(point.get("k", 1)) is int
        assert point["on"] in (None, True)


def _is_best_on_all_rows(problem, found):
    whole = [entry for entry in problem.history.entries if "rows" not in entry]
    assert found.score == max(entry["score"] for entry in whole)
    assert START in [entry["point"] for entry in whole]


def test_a_split_of_few_rows_has_one_round(tmp_path):
    pytest.importorskip("smac")
    problem = toy(tmp_path)
    smac(problem, **{**OPTIONS, "trials": 2, "least": 100})
    assert not any("rows" in entry for entry in problem.history.entries)


@pytest.mark.parametrize("library", ["smac", "ConfigSpace"])
def test_a_missing_library_gives_its_pip_line(tmp_path, library, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(ValueError, match=r'pip install "osrm-exp\[search\]"'):
        smac(toy(tmp_path), **OPTIONS)
