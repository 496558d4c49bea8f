"""Every optimiser on a toy of which the optimum is known, cut short and gone on with."""

import json

import pytest
import torch
from toy_problem import Slope, Toy

from osrm_exp.search import adam, cmaes, grid, nevergrad, optuna

BOX = {"a": (0.0, 1.0), "b": (-2.0, 2.0)}
LIST = {"a": (0.0, 0.3, 1.0), "b": (-2.0, 1.0, 2.0)}
BEST = {"a": 0.3, "b": 1.0}
RUNS = {
    "grid": (grid, LIST, {"widen": False}),
    "optuna": (optuna, BOX, {"trials": 60, "startup": 10, "prune": False}),
    "optuna pruned": (optuna, BOX, {"trials": 60, "startup": 10, "prune": True}),
    "cmaes": (cmaes, BOX, {"evaluations": 100, "sigma": 1 / 6, "population": None}),
    "nevergrad": (nevergrad, BOX, {"budget": 80, "optimizer": "NGOpt"}),
}
LIBRARY = {"optuna": "optuna", "cmaes": "cma", "nevergrad": "nevergrad"}
every = pytest.mark.parametrize("name", RUNS)


def hill(point):
    return -((point["a"] - BEST["a"]) ** 2) - ((point["b"] - BEST["b"]) / 4) ** 2


def run(name, folder, **options):
    if library := LIBRARY.get(name.split()[0]):
        pytest.importorskip(library)
    folder.mkdir(exist_ok=True)
    call, space, own = RUNS[name]
    problem = Toy(folder, space, hill, **options)
    return call(problem, **own), problem


def told(problem):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in problem.history.entries]


@every
def test_a_known_optimum_is_found(name, tmp_path):
    found, problem = run(name, tmp_path)
    assert found.score == pytest.approx(0, abs=3e-3) and found.score == hill(found.settings)
    assert found.score == max(e["score"] for e in problem.history.entries if e["score"] is not None)
    for key, best in BEST.items():
        low, high = min(RUNS[name][1][key]), max(RUNS[name][1][key])
        assert found.settings[key] == pytest.approx(best, abs=0.1 * (high - low))
        assert all(low <= entry["point"][key] <= high for entry in problem.history.entries)


@every
def test_the_same_seed_gives_the_same_history_and_another_one_another(name, tmp_path):
    (one, first), (other, second) = run(name, tmp_path / "1"), run(name, tmp_path / "2")
    assert told(first) == told(second) and one == other
    if name not in ("grid", "nevergrad"):  # NGOpt chooses Cobyla here, which draws nothing
        assert told(run(name, tmp_path / "3", seed=2)[1]) != told(first)


@every
def test_a_killed_search_goes_on_and_evaluates_no_point_twice(name, tmp_path):
    whole, straight = run(name, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run(name, tmp_path / "cut", dies=6)
    file = tmp_path / "cut" / "history.jsonl"
    assert len(file.read_text().splitlines()) == 5
    with file.open("a") as out:
        out.write('{"point": {"a": 0.')  # what a kill in the middle of a line leaves
    again, resumed = run(name, tmp_path / "cut")
    assert again == whole and told(resumed) == told(straight)
    assert resumed.made == straight.made - 5
    points = [json.dumps(entry["point"]) for entry in resumed.history.entries]
    assert len(points) == len(set(points))


@every
def test_a_finished_search_evaluates_nothing(name, tmp_path):
    first, _ = run(name, tmp_path)
    again, problem = run(name, tmp_path)
    assert again == first and problem.made == 0


@pytest.mark.parametrize(("name", "key"), [("cmaes", "evaluations"), ("nevergrad", "budget")])
@pytest.mark.parametrize("budget", [1, 2, 7, 23])
def test_a_budget_is_kept(name, key, budget, tmp_path):
    pytest.importorskip(LIBRARY[name])
    problem = Toy(tmp_path, BOX, hill)
    RUNS[name][0](problem, **{**RUNS[name][2], key: budget})
    assert problem.made <= budget and (name == "nevergrad" or problem.made == budget)


def test_the_first_point_is_the_merge_as_it_stands(tmp_path):
    for name in ("optuna", "cmaes", "nevergrad"):
        _, problem = run(name, tmp_path / name, start={"a": 0.75, "b": -1.0})
        assert problem.history.entries[0]["point"] == pytest.approx({"a": 0.75, "b": -1.0})


def test_a_start_that_is_no_candidate_is_left_out(tmp_path):
    pytest.importorskip("optuna")
    space = {"rule": ("x", "y"), "a": (0.0, 1.0)}
    problem = Toy(tmp_path, space, lambda p: p["a"], start={"rule": None, "a": 7.0})
    found = optuna(problem, trials=12, startup=5, prune=False)
    assert found.settings["rule"] in "xy" and found.settings["a"] <= 1


def test_a_hopeless_candidate_is_given_up_after_its_first_task(tmp_path):
    _, problem = run("optuna pruned", tmp_path)
    pruned = [entry for entry in problem.history.entries if entry["score"] is None]
    assert pruned and all(list(entry["tasks"]) == ["one"] for entry in pruned)
    whole = [entry["score"] for entry in problem.history.entries if entry["score"] is not None]
    assert max(entry["tasks"]["one"] for entry in pruned) < max(whole)


def test_one_number_alone_and_whole_numbers(tmp_path):
    for call, _, options in (RUNS["cmaes"], RUNS["optuna"]):
        pytest.importorskip(LIBRARY[call.__name__])
        (tmp_path / call.__name__).mkdir()
        problem = Toy(tmp_path / call.__name__, {"k": (1, 9)}, lambda p: -abs(p["k"] - 6))
        assert call(problem, **options).settings == {"k": 6}
        assert all(isinstance(entry["point"]["k"], int) for entry in problem.history.entries)


def test_a_library_that_fails_says_so_in_one_sentence(tmp_path, monkeypatch):
    library = pytest.importorskip("nevergrad")

    def fail(self):
        raise TypeError("only 0-dimensional\narrays")

    monkeypatch.setattr(library.optimizers.registry["NGOpt"], "ask", fail)
    with pytest.raises(ValueError, match=r"NGOpt failed, as .* \(only 0-dimensional arrays\)"):
        run("nevergrad", tmp_path)


def test_optuna_chooses_from_lists(tmp_path):
    pytest.importorskip("optuna")
    space = {"rule": ("x", "y", None), "on": (True, False)}
    problem = Toy(tmp_path, space, lambda p: (p["rule"] == "y") + (p["on"] is False))
    assert optuna(problem, trials=30, startup=10, prune=False).settings == {
        "rule": "y",
        "on": False,
    }


@pytest.mark.parametrize(
    ("call", "space", "options", "sentence"),
    [
        (cmaes, {"rule": ("x", "y")}, RUNS["cmaes"][2], "rule has .*'x', 'y'.*search=optuna"),
        (cmaes, {}, RUNS["cmaes"][2], "nothing has a name to propose values for"),
        (optuna, {"a": ()}, RUNS["optuna"][2], "a has no range"),
        (nevergrad, BOX, {"budget": 3, "optimizer": "Nope"}, "no optimizer 'Nope'"),
        (grid, {k: tuple(range(30)) for k in "abc"}, {"widen": False}, "a grid of 27000 points"),
        (grid, {"a": ()}, {"widen": False}, "a grid of 0 points"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(tmp_path, call, space, options, sentence):
    problem = Toy(tmp_path, space, hill, start=dict.fromkeys(space, 0))
    with pytest.raises(ValueError, match=sentence) as caught:
        call(problem, **options)
    assert "\n" not in str(caught.value) and problem.made == 0


@pytest.mark.parametrize("call", [optuna, cmaes, nevergrad])
def test_a_missing_library_gives_its_pip_line(tmp_path, call, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, LIBRARY[call.__name__], None)
    with pytest.raises(ValueError, match=r'pip install "osrm-exp\[search\]"'):
        call(Toy(tmp_path, BOX, hill), **RUNS[call.__name__][2])


STEPS = {"steps": 300, "lr": 0.05, "batch_size": 1, "batches": 1, "clamp": "after"}
GOAL = {"x": torch.tensor([0.5, -0.25]), "y": torch.tensor([[0.7]])}


def test_adam_finds_a_minimum(tmp_path):
    problem = Slope(tmp_path, GOAL)
    found = adam(problem, **STEPS)
    for name, goal in GOAL.items():
        torch.testing.assert_close(found.tensors[name], goal, atol=1e-3, rtol=0)
    assert problem.history.entries[-1]["tasks"]["one"] < problem.history.entries[0]["tasks"]["one"]


@pytest.mark.parametrize("clamp", ["after", "forward"])
def test_adam_stays_within_limits(tmp_path, clamp):
    found = adam(Slope(tmp_path, GOAL, limits=(0.0, 0.6)), **{**STEPS, "clamp": clamp})
    # used clamped, a number that overshot an end has no gradient and never comes back: as released
    x = [0.5, 0.0] if clamp == "after" else [0.6, 0.0]
    torch.testing.assert_close(found.tensors["x"], torch.tensor(x), atol=2e-2, rtol=0)
    torch.testing.assert_close(found.tensors["y"], torch.tensor([[0.6]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("often", [0, 10**9])
def test_adam_cut_short_ends_where_it_would_have_ended(tmp_path, monkeypatch, often):
    """Whether its state was saved after every step, or long before the kill."""
    monkeypatch.setattr("osrm_exp.search.gradient.OFTEN", often)
    options = {**STEPS, "steps": 12}
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    for folder in (straight, cut):
        folder.mkdir()
    whole = adam(Slope(straight, GOAL), **options)
    with pytest.raises(KeyboardInterrupt):
        adam(Slope(cut, GOAL, dies=8), **options)
    resumed = Slope(cut, GOAL)
    again = adam(resumed, **options)
    assert resumed.made == (12 - 7 if often == 0 else 11)
    assert [entry["step"] for entry in resumed.history.entries] == list(range(12))
    for name in GOAL:
        assert torch.equal(again.tensors[name], whole.tensors[name])


def test_a_diverging_search_says_what_helps(tmp_path):
    problem = Slope(tmp_path, {"x": torch.tensor([torch.nan])})
    with pytest.raises(ValueError, match=r"merge=toy: .* not finite after step 0: a lower lr"):
        adam(problem, **STEPS)
