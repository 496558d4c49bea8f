import pytest
from toy_problem import Toy

from osrm_exp.search import grid, scored


def test_every_point_is_scored_once_and_the_first_of_equals_wins(tmp_path):
    problem = Toy(tmp_path, {"a": [1, 2], "b": ["x", "y"]}, lambda point: -abs(point["a"] - 1.5))
    assert grid(problem, widen=False).settings == {"a": 1, "b": "x"}
    assert problem.made == 4


@pytest.mark.parametrize(("optimum", "chosen"), [(0.72, 0.7), (0.11, 0.1), (0.31, 0.3)])
def test_a_grid_goes_on_beyond_the_end_where_the_best_point_lies(tmp_path, optimum, chosen):
    values = [0.5, 0.4, 0.3, 0.2]
    problem = Toy(tmp_path, {"a": values}, lambda point: -((point["a"] - optimum) ** 2))
    assert grid(problem, widen=True).settings == {"a": pytest.approx(chosen)}
    seen = [entry["point"]["a"] for entry in problem.history.entries]
    assert len(seen) == len(set(seen)) == problem.made and min(seen) > 0
    assert (0.6 in seen) == (optimum > 0.5)


def test_widening_ends_and_leaves_alone_what_is_no_number(tmp_path):
    space = {"a": [1.0, 2.0], "rule": ["x", "y"], "one": [3.0]}
    problem = Toy(tmp_path, space, lambda point: point["a"])
    grid(problem, widen=True)
    points = [entry["point"] for entry in problem.history.entries]
    assert max(p["a"] for p in points) == 10.0 and {p["one"] for p in points} == {3.0}


def test_values_may_be_lists(tmp_path):
    space = {"weights": [[1, 0], [0, 1]]}
    assert grid(Toy(tmp_path, space, lambda p: p["weights"][1]), widen=False).settings == {
        "weights": [0, 1]
    }


def test_what_stands_is_scored_where_a_score_is_all_that_is_wanted(tmp_path):
    problem = Toy(tmp_path, {}, lambda _: 0.25)
    assert scored(problem, widen=False).score == 0.25 and problem.made == 1
