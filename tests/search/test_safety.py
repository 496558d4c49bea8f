"""An alignment set beside the tasks: of what is written, and of classes."""

from __future__ import annotations

import pytest
import torch
from conftest import WRITTEN

from osrm_exp import needs, pipeline
from osrm_exp.adapter import read_adapter
from osrm_exp.artifacts import Workshop
from osrm_exp.bench import Bench
from osrm_exp.search.history import History
from osrm_exp.search.problem import Problem
from osrm_exp.store import Store

WRITER = ("writer", *WRITTEN, "tuning.epochs=4", "merge=safety_aware")
CLASSES = ("roberta", "tuning.epochs=1", "dataset.only=[cola,sst2,stsb]")
GUARD = ["+merge.search.objective.weight=0.25", "+merge.search.objective.alignment=[sst2]"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Workshop:
    return Workshop(Store(tmp_path_factory.mktemp("store")), progress=False)


@pytest.fixture
def problem(cell, shop, tmp_path):
    def build(*overrides: str) -> Problem:
        chosen = cell(*overrides)
        wanted = shop.store.get_all(needs.fine_tunes(chosen), shop)
        bench = Bench(chosen, [read_adapter(folder) for folder in wanted], shop)
        return Problem(chosen, bench, bench.statistics(), History(tmp_path))

    return build


def scored(problem: Problem, *weights: float) -> tuple[float, dict[str, float]]:
    score = problem.score(dict(zip(("say", "color", "no"), weights)))
    return score, problem.history.entries[-1]["tasks"]


@pytest.mark.parametrize("a", [0.0, 0.3, 0.5, 1.0])
def test_the_alignment_set_has_its_share_and_no_other(problem, a):
    one = problem(*WRITER, f"merge.search.objective.weight={a}")
    score, tasks = scored(one, 0.2, 0.5, 0.3)
    assert set(tasks) == {"say", "color", "no"} - ({"no"} if a == 0 else set()) - (
        {"say", "color"} if a == 1 else set()
    )
    work = (tasks.get("say", 0.0) + tasks.get("color", 0.0)) / 2
    assert score == pytest.approx(a * tasks.get("no", 0.0) + (1 - a) * work)


def test_without_a_weight_all_tasks_count_alike_at_the_address_of_before(problem, cell):
    plain = problem(*WRITER, "merge.search.objective.weight=null")
    score, tasks = scored(plain, 0.2, 0.5, 0.3)
    assert score == sum(tasks.values()) / 3
    bare = cell(*WRITER, "~merge.search.objective.weight")
    assert needs.searched(bare).digest == needs.searched(plain.cell).digest


def test_no_weight_of_its_own_means_that_its_rows_are_never_seen(problem, monkeypatch):
    one, seen = problem(*WRITER, "merge.search.objective.weight=0"), []
    plain = Bench.batches

    def watched(self, index, split, *rows):
        seen.append(self.tasks[index].name)
        return plain(self, index, split, *rows)

    monkeypatch.setattr(Bench, "batches", watched)
    scored(one, 1.0, 0.0, 0.0)
    assert set(seen) == {"say", "color"}


def test_a_whole_weight_goes_to_the_aligned_expert_and_none_goes_elsewhere(cell, shop):
    pytest.importorskip("cma")
    budget = ["merge.search.evaluations=60", "merge.search.sigma=0.3"]
    weights = {}
    for a in (0, 1):
        chosen = cell(*WRITER, *budget, f"merge.search.objective.weight={a}")
        done = pipeline.run(chosen, shop)
        best = max(done.tried, key=lambda one: one["score"])["point"]
        weights[a] = {name: abs(c) / sum(map(abs, best.values())) for name, c in best.items()}
        row = done.rows[0]
        assert row["data"] == ["labeled tune"] and row["tuned_on"] == "tune"
        assert row["search"].get("excluded", []) == {0: ["no"], 1: ["say", "color"]}[a]
    assert weights[1]["no"] > 0.9 > 0.3 > weights[0]["no"]


def test_a_guarded_class_is_weighed_in_a_gradient(problem):
    one = problem(*CLASSES, "merge=adamerging_layer", *GUARD)
    assert one.shares == [1.5, 0.5, 0.0]  # of the two that an entropy can judge
    parts = {}
    for name, shares in (("cola", [1, 0, 0]), ("sst2", [0, 1, 0]), ("both", one.shares)):
        one.shares = shares
        free = {n: t.clone().requires_grad_() for n, t in one.family.start.items()}
        one.gradient(free, lambda i: [one.bench.data[i].collate(one.bench.data[i].tune[:6])])
        parts[name] = torch.stack([tensor.grad for tensor in free.values()])
    expected = 1.5 * parts["cola"] + 0.5 * parts["sst2"]
    torch.testing.assert_close(parts["both"], expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([*WRITER, "merge.search.objective.alignment=[nope]"], "nope is no task .* say, color"),
        ([*WRITER, "merge.search.objective.weight=1.5"], "objective.weight: .* less than or equal"),
        ([*WRITER, "dataset.only=[say,color]"], "weight=0.5 needs an alignment set"),
        ([*WRITER, "merge.search.objective.alignment=[say,color,no]"], "is all that can be judge"),
        ([*CLASSES, "merge=adamerging_layer", "+merge.search.objective.weight=0.5",
          "+merge.search.objective.alignment=[stsb]"], "stsb: Entropy cannot judge it; Loss can"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_before_anything_is_trained(cell, workshop, overrides, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        pipeline.run(cell(*overrides), workshop)
    assert "\n" not in str(caught.value)
    assert not list(workshop.store.root.glob("FineTune/[!.]*"))
