"""The environment of reinforced merging, without the library that learns in it."""

import pytest
from toy_problem import Toy

from osrm_exp.search.walk import CAP, LOST, Walk

SPACE = dict.fromkeys("pqr", ("x", "y", "skip"))
X, Y, SKIP, BACK = range(4)


def walk(folder, judge=lambda _: 0.5, **options) -> Walk:
    given = {"walks": 10, "parts": 1, "smoothing": 0.8, "back": True, "observe_cursor": True}
    return Walk(Toy(folder, SPACE, judge), **given | options)


def walked(one: Walk, *actions: int) -> list:
    one.reset()
    return [one.step(action) for action in actions]


def test_a_walk_that_arrives_is_rewarded_by_its_score(tmp_path):
    one = walk(tmp_path, lambda point: float(point == {"p": "x", "q": "skip", "r": "y"}))
    steps = walked(one, X, SKIP, Y)
    assert [(s.reward, s.done, s.cut) for s in steps] == [(0, False, False)] * 2 + [
        (1, True, False)
    ]
    assert walked(one, X, SKIP, X)[-1].reward == 0
    assert one.problem.seen == [None, None]  # all rows


def test_a_step_back_chooses_anew_and_before_the_first_is_lost(tmp_path):
    one = walk(tmp_path, lambda point: float(point["q"] == "y"))
    steps = walked(one, X, X, BACK, Y, X)
    assert steps[-1].done and steps[-1].reward == 1 and one.point == {"p": "x", "q": "y", "r": "x"}
    (lost,) = walked(one, BACK)
    assert lost.done and lost.reward == LOST


def test_going_to_and_fro_is_cut(tmp_path):
    one = walk(tmp_path)
    steps = walked(one, *[X, BACK] * 4, X)
    assert [step.cut for step in steps] == [False] * (3 * CAP - 1) + [True]
    assert not any(step.done for step in steps) and one.problem.made == 0


def test_what_is_seen_with_the_cursor_and_without(tmp_path):
    one = walk(tmp_path)
    first, *_, last = [one.reset(), *(one.step(a).seen for a in (X, SKIP, BACK, Y))]
    assert first.tolist() == [0] * 9 + [1, 0, 0, 0]
    assert last.tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    blind = walk(tmp_path, observe_cursor=False)
    seen = [blind.reset(), *(blind.step(a).seen for a in (X, BACK, Y, SKIP))]
    assert [one.tolist() for one in seen] == [
        [0] * 9,
        [1] + [0] * 8,
        [1] + [0] * 8,  # a step back is not seen,
        [1, 1] + [0] * 7,  # what was chosen before stays,
        [1, 1] + [0] * 7,  # and a skip leaves no trace
    ]


def test_rewards_of_parts_are_averaged_the_more_the_later(tmp_path):
    one, scores = walk(tmp_path, parts=3), (0.9, 0.3, 0.6)
    one.problem.score = lambda _, rows: scores[rows.start] if rows.step == 3 else None
    rewards = [walked(one, X, X, X)[-1].reward for _ in range(4)]
    second = 0.16 * 0.9 + 0.84 * 0.3
    third = 0.24 * second + 0.76 * 0.6
    assert rewards == pytest.approx([0.9, second, third, 0.9])  # the first part is as it is


def test_equal_rewards_are_their_average_and_one_part_is_never_smoothed(tmp_path):
    one = walk(tmp_path, parts=4)
    assert [walked(one, X, X, X)[-1].reward for _ in range(9)] == pytest.approx([0.5] * 9)
    scores = {"x": 0.1, "y": 0.9, "skip": 0.4}
    plain = walk(tmp_path / "..", lambda point: scores[point["r"]])
    for action, score in ((X, 0.1), (Y, 0.9), (SKIP, 0.4)):
        assert walked(plain, X, X, action)[-1].reward == score


def test_there_are_no_more_parts_than_rows(tmp_path):
    one = walk(tmp_path, parts=100)
    assert one.parts == 9
