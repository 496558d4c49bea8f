"""What tables say of a search and of the data that a merge has seen."""

import pandas as pd

from osrm_exp.report.curves import coefficient_curves
from osrm_exp.report.frame import lines
from osrm_exp.report.scores import scores
from osrm_exp.report.tables import shown


def test_a_search_and_its_data_have_columns_and_the_reported_split_is_marked(row):
    learned = row(
        "adamerging_released", line="l2", tuned_on="validation", data=["unlabeled validation"],
        search={"name": "adam entropy", "artifact": "0" * 16},
    )  # fmt: skip
    grid = row(line="l1", search={"name": "grid"}, data=["labeled tune", "unlabeled train"])
    table = lines(scores(pd.DataFrame([learned, grid])))
    text = shown(table)[0].set_index("merge")
    assert text.loc["adamerging_released", "data"] == "unlabeled validation (reported)"
    assert text.loc["ties", "data"] == "labeled tune, unlabeled train"
    assert list(text.search) == ["adam entropy", "grid"]


def test_rows_of_before_and_plain_grids_have_no_such_column(row):
    assert not {"search", "data"} & set(shown(lines(scores(pd.DataFrame([row()]))))[0])
    grid = row(search={"name": "grid"}, data=["labeled tune"])
    text = shown(lines(scores(pd.DataFrame([grid, row("dare", line="l2")]))))[0]
    assert "search" not in text and list(text.data) == ["", "labeled tune"]


def test_steps_and_candidates_that_were_given_up_make_no_curve(row):
    tried = [
        {"cell": "l1-1", "point": {"scaling": x}, "score": y, "split": "tune"}
        for x, y in ((0.1, 0.5), (0.2, None), (0.3, 0.7))
    ]
    steps = [{"cell": "l1-1", "point": {}, "score": None, "split": "tune", "step": 0}]
    found = coefficient_curves(scores(pd.DataFrame([row()])), pd.DataFrame(tried + steps))
    assert list(found.x) == [0.1, 0.3] and list(found.y) == [50, 70]
    assert coefficient_curves(scores(pd.DataFrame([row()])), pd.DataFrame(steps)).empty


def test_what_was_set_for_one_search_of_two_tells_them_apart(row):
    name = {"name": "cmaes loss"}
    typed = ["merge=evomm", "merge.search.rows=8", "merge.search.objective.weight=0"]
    one = row("evomm", line="l1", search=name, overrides=typed)
    two = row("evomm", line="l2", search=name, overrides=[*typed[:2], "+search.objective.weight=1"])
    found = lines(scores(pd.DataFrame([one, two, row(line="l3")])))
    told = ["", "cmaes loss objective.weight=0", "cmaes loss objective.weight=1"]
    assert sorted(found.search) == told
