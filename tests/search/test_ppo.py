"""PPO on a toy of which the optimum is known."""

import numpy as np
import pytest
import torch
from toy_problem import Toy

from osrm_exp.search import ppo

BEST = ("x", "y", "y", "x")
SPACE = {str(place): ("x", "y") for place in range(4)}
OPTIONS = {
    "episodes": 250, "parts": 1, "smoothing": 0.8, "lr": 3e-4, "samples": 0, "back": False,
    "observe_cursor": True,
}  # fmt: skip
SHORT = {**OPTIONS, "episodes": 9, "samples": 2, "back": True, "parts": 3}


def judge(point):
    return sum(point[name] == best for name, best in zip(SPACE, BEST)) / 4


def toy(folder, **options) -> Toy:
    folder.mkdir(exist_ok=True)
    return Toy(folder, SPACE, judge, **options)


def told(problem):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in problem.history.entries]


def test_the_learned_policy_walks_to_the_optimum(tmp_path):
    """By a part of the rows in turn, so that only what the policy likes best is seen whole."""
    pytest.importorskip("stable_baselines3")
    problem = toy(tmp_path)
    found = ppo(problem, **{**OPTIONS, "parts": 2})
    whole = [entry for entry in problem.history.entries if "rows" not in entry]
    assert found.score == 1 and [entry["score"] for entry in whole] == [1]
    assert problem.made <= 2 * 2**4 + 1


def test_a_search_repeats_goes_on_after_a_kill_and_draws_from_nobody_elses_numbers(tmp_path):
    pytest.importorskip("stable_baselines3")
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    straight = toy(tmp_path / "straight")
    found = ppo(straight, **SHORT)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    with pytest.raises(KeyboardInterrupt):
        ppo(toy(tmp_path / "cut", dies=4), **SHORT)
    resumed = toy(tmp_path / "cut")
    assert ppo(resumed, **SHORT) == found and told(resumed) == told(straight)
    assert resumed.made == straight.made - 3
    other = toy(tmp_path / "other", seed=2)
    ppo(other, **SHORT)
    assert told(other) != told(straight)
    whole = [entry["score"] for entry in straight.history.entries if "rows" not in entry]
    assert whole and found.score == max(whole)


def test_one_name_alone_is_walked_too(tmp_path):
    pytest.importorskip("stable_baselines3")
    problem = Toy(tmp_path, {"0": ("x", "y")}, lambda point: float(point["0"] == "y"))
    assert ppo(problem, **{**OPTIONS, "episodes": 12}).settings == {"0": "y"}


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"a": (1, 2), "b": (1, 2, 3)}, "a has 2, b has 3: take search=optuna"),
        ({}, "nothing has a name"),
        ({"a": ()}, "a has no range"),
    ],
)
def test_what_cannot_be_walked_is_one_sentence(tmp_path, space, sentence):
    pytest.importorskip("stable_baselines3")
    problem = Toy(tmp_path, space, lambda _: 0.0, start=dict.fromkeys(space, 0))
    with pytest.raises(ValueError, match=sentence) as caught:
        ppo(problem, **OPTIONS)
    assert "\n" not in str(caught.value) and problem.made == 0


@pytest.mark.parametrize("library", ["stable_baselines3", "gymnasium"])
def test_a_missing_library_gives_its_pip_line(tmp_path, library, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(ValueError, match=r'pip install "osrm-exp\[search\]"'):
        ppo(toy(tmp_path), **OPTIONS)
