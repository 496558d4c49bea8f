import pytest

from osrm_exp.search import grid


def test_every_point_is_scored_once_and_the_first_of_equals_wins():
    seen = []

    def score(point):
        seen.append(point)
        return -abs(point["a"] - 1.5)

    assert grid({"a": [1, 2], "b": ["x", "y"]}, score, widen=False) == {"a": 1, "b": "x"}
    assert len(seen) == 4


@pytest.mark.parametrize(("optimum", "chosen"), [(0.72, 0.7), (0.11, 0.1), (0.31, 0.3)])
def test_a_grid_goes_on_beyond_the_end_where_the_best_point_lies(optimum, chosen):
    seen = []

    def score(point):
        seen.append(point["a"])
        return -((point["a"] - optimum) ** 2)

    assert grid({"a": [0.5, 0.4, 0.3, 0.2]}, score, widen=True) == {"a": pytest.approx(chosen)}
    assert len(seen) == len(set(seen)) and min(seen) > 0
    assert (0.6 in seen) == (optimum > 0.5)


def test_widening_ends_and_leaves_alone_what_is_no_number():
    seen = []

    def score(point):
        seen.append(point)
        return point["a"]

    grid({"a": [1.0, 2.0], "rule": ["x", "y"], "one": [3.0]}, score, widen=True)
    assert max(p["a"] for p in seen) == 10.0 and {p["one"] for p in seen} == {3.0}
