"""Merges that are learned on a real network: AdaMerging and its kin, LoraHub, surgery, gates."""

from __future__ import annotations

import pytest
import torch

from osrm_exp import needs, pipeline
from osrm_exp.adapter import read_adapter
from osrm_exp.artifacts import Workshop
from osrm_exp.artifacts.searched import outcome, read_told
from osrm_exp.bench import Bench
from osrm_exp.compose import cell_from
from osrm_exp.export.files import export
from osrm_exp.lora import LowRank, Result
from osrm_exp.placing import applied
from osrm_exp.search import prodistill
from osrm_exp.search.history import History
from osrm_exp.search.problem import Problem
from osrm_exp.spec import FineTune, Searched
from osrm_exp.store import Store
from osrm_exp.tasks.kinds import logits

SHORT = ["tuning.epochs=1", "dataset.only=[cola,sst2,stsb]"]
ADAM = ["merge.search.steps=4", "merge.search.lr=0.02"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Workshop:
    """One store for all: three adapters are trained, once."""
    return Workshop(Store(tmp_path_factory.mktemp("store")), progress=False)


@pytest.fixture
def problem(cell, shop, tmp_path):
    """`problem(*overrides)`: the search of a cell over trained adapters, and its bench."""

    def build(*overrides: str) -> Problem:
        chosen = cell("roberta", *SHORT, *overrides)
        wanted = shop.store.get_all(needs.fine_tunes(chosen), shop)
        bench = Bench(chosen, [read_adapter(folder) for folder in wanted], shop)
        return Problem(chosen, bench, bench.statistics(), History(tmp_path))

    return build


def leaves(problem: Problem) -> dict[str, torch.Tensor]:
    return {n: t.clone().requires_grad_() for n, t in problem.family.start.items()}


def batch_of(problem: Problem, rows: int = 6):
    return lambda index: [problem.bench.data[index].collate(problem.bench.data[index].tune[:rows])]


def test_a_gradient_through_the_factors_is_that_of_dense_deltas(problem, monkeypatch):
    one = problem("merge=adamerging_layer")
    assert [one.cell.tasks[i].name for i in one.members] == ["cola", "sst2"]  # stsb: a regression
    free = leaves(one)
    assert len(free) == 4 and all(tensor.shape == (3,) for tensor in free.values())
    with monkeypatch.context() as patch:
        patch.setattr(LowRank, "delta", property(lambda _: pytest.fail("a dense delta")))
        values = one.gradient(free, batch_of(one))

    dense = leaves(one)
    total = torch.zeros(())
    for index in one.members:
        batch = dict(batch_of(one)(index)[0])
        batch.pop("labels")
        weights = {
            f"{m}.weight": one.bench.net.get_submodule(m).weight
            + torch.einsum("t,toi->oi", dense[m], one.bench.updates[m].delta)
            for m in dense
        }
        with applied(one.bench.net, {}, one.bench.heads[index]) as net:
            out = torch.func.functional_call(net, weights, kwargs=batch).logits
        p = out.softmax(-1)
        value = -(p * p.log()).sum(-1).mean() / torch.tensor(float(out.shape[-1])).log()
        assert values[one.cell.tasks[index].name] == pytest.approx(value.item(), rel=1e-4)
        total = total + value
    total.backward()
    for module in free:
        assert free[module].grad.abs().max() > 0
        torch.testing.assert_close(free[module].grad, dense[module].grad, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    "name", ["adamerging_layer", "adamerging_task", "adamerging_pp", "doge_am"]
)
def test_the_start_is_task_arithmetic_of_what_is_scaled(problem, name):
    quick = ["merge.search.first.iterations=3"] if name == "doge_am" else []
    one = problem(f"merge={name}", *quick)
    merged = dict(Result(one.family.outcome({}, one.family.start).updates))
    for module, stack in one.family.scene.updates.items():
        expected = 0.3 * (stack.delta.sum(0))
        torch.testing.assert_close(merged[module].delta, expected, rtol=1e-4, atol=1e-7)


def test_one_coefficient_alone_is_that_expert(problem):
    one = problem("merge=adamerging_layer")
    chosen = {module: torch.tensor([0.0, 1.0, 0.0]) for module in one.family.start}
    merged = one.family.outcome({}, chosen).updates
    for module, stack in one.bench.updates.items():
        torch.testing.assert_close(merged[module].delta, stack.task(1).delta)


@pytest.mark.parametrize(
    "name",
    ["adamerging_layer", "adamerging_task", "adamerging_pp", "adamerging_released", "doge_am",
     "wemoe", "surgery"],
)  # fmt: skip
def test_what_is_learned_lowers_its_objective(cell, shop, name):
    quick = ["merge.search.first.iterations=3"] if name == "doge_am" else []
    rate = "0.002" if name == "wemoe" else "0.02"
    steps = ["merge.search.steps=25", f"merge.search.lr={rate}", "merge.search.batch_size=64"]
    chosen = cell("roberta", *SHORT, f"merge={name}", *steps, *quick)
    outcome = pipeline.run(chosen, shop)
    first, last = (sum(outcome.tried[i]["tasks"].values()) for i in (0, -1))
    assert last < first
    row = outcome.rows[0]
    labels, split = ("unlabeled", "validation" if name == "adamerging_released" else "tune")
    assert row["data"] == [f"{labels} {split}"] and row["tuned_on"] == split
    assert row["search"]["artifact"] == needs.searched(chosen).digest
    assert row["search"]["evaluations"] == 25 and row["search"]["seconds"] > 0
    assert row["search"].get("excluded", []) == ([] if name == "surgery" else ["stsb"])
    form = {"wemoe": "routed, lowrank 4", "surgery": "per_task, lowrank 12",
            "adamerging_pp": "shared, dense", "doge_am": "shared, dense"}  # fmt: skip
    assert row["output"] == form.get(name, "shared, lowrank 12")


def test_no_label_is_ever_seen_where_none_is_declared(cell, shop, monkeypatch):
    chosen = cell("roberta", *SHORT, "merge=adamerging_task", *ADAM)
    first = outcome_of(chosen, shop)
    from osrm_exp.tasks.data import TaskData

    plain = TaskData.collate

    def spoiled(self, examples, pad_to=None):
        batch = plain(self, examples, pad_to)
        return {**batch, "labels": torch.full_like(batch["labels"], -12345)}

    monkeypatch.setattr(TaskData, "collate", spoiled)
    again = cell("roberta", *SHORT, "merge=adamerging_task", *ADAM, "+merge.search.version=2")
    assert needs.searched(again).digest != needs.searched(chosen).digest
    for module, tensor in first.items():
        assert torch.equal(tensor, outcome_of(again, shop)[module])


def outcome_of(cell, shop):
    from safetensors.torch import load_file

    folder = shop.store.get(needs.searched(cell), shop)
    return load_file(folder / "coefficients.safetensors")


@pytest.mark.parametrize(
    "merge, family",
    [
        ("adamerging_task", {"_target_": "osrm_exp.search.Fusion", "groups": 2}),
        ("adamerging_task", {"_target_": "osrm_exp.search.Candidates"}),
        ("ties_mergekit", {"weights": "weights", "grain": "update", "groups": 1}),
    ],
)
def test_a_gradient_wants_something_that_it_can_move(configured, shop, monkeypatch, merge, family):
    """Neither choices nor the numbers that a merge takes as its options: before training."""
    monkeypatch.setattr(FineTune, "build", lambda *_: pytest.fail("trained"))
    config = configured("roberta", *SHORT, f"merge={merge}")
    learned = configured("roberta", "merge=adamerging_task")["merge"]["search"]
    if "_target_" not in family:
        family = {**learned["family"], **family}
    config["merge"]["search"] = {**learned, "family": family}
    with pytest.raises(ValueError, match=rf"merge={merge} has nothing that a gradient could move"):
        pipeline.run(cell_from(config), shop.store)


def test_the_order_of_tasks_permutes_coefficients(problem):
    """Of one gradient: rows are drawn by a task's place."""
    one, other = (
        problem("merge=adamerging_layer"),
        problem("merge=adamerging_layer", "dataset.only=[stsb,sst2,cola]"),
    )
    free, turned = leaves(one), leaves(other)
    one.gradient(free, batch_of(one))
    other.gradient(turned, batch_of(other))
    for module in free:
        torch.testing.assert_close(free[module].grad.flip(0), turned[module].grad)


def test_surgery_changes_nothing_before_it_learns_and_is_the_tasks_own(problem):
    one = problem("merge=surgery")
    made = one.family.outcome({}, one.family.start)
    plain = one.bench.scores(dict(made.updates), "tune")
    for before, after in zip(plain, one.bench.scores(dict(made.updates), "tune", made.heads)):
        assert before.values == after.values
    moved = {n: t + 1 if n == "sst2.up" else t for n, t in one.family.start.items()}
    heads = one.family.outcome({}, moved).heads
    batches = one.bench.batches(0, "tune")
    with one.bench.placed(dict(made.updates)) as network:
        for index, same in enumerate((True, False, True)):
            batches = one.bench.batches(index, "tune")
            with network(index) as net:
                bare, _ = logits(net, batches)
            with network(index, heads) as net:
                operated, _ = logits(net, batches)
            assert torch.equal(bare, operated) == same


def test_gates_of_no_weight_are_task_arithmetic(problem):
    one = problem("merge=wemoe", "merge.search.family.spread=0.0")
    gated = dict(one.family.outcome({}, one.family.start).updates)
    summed = {m: stack.total() * 0.3 for m, stack in one.bench.updates.items()}
    for a, b in zip(one.bench.scores(gated, "tune"), one.bench.scores(summed, "tune")):
        assert a.values == pytest.approx(b.values, abs=1e-6)
    assert len(one.family.start) == 2 * 4  # q and v of a layer share a gate


def test_a_gate_answers_a_token_whatever_its_batch(problem):
    one = problem("merge=wemoe", "merge.search.family.spread=0.5")
    updates = dict(one.family.outcome({}, one.family.start).updates)
    rows = one.bench.data[0].tune[:6]
    with one.bench.placed(updates) as network, network(0) as net:
        together, _ = logits(net, [one.bench.data[0].collate(rows, pad_to=30)])
        alone, _ = logits(net, [one.bench.data[0].collate([row]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lorahub_search", "lorahub_delta", "evomm"])
def test_a_searched_sum_beats_where_it_began(cell, shop, name):
    pytest.importorskip("cma" if name == "evomm" else "nevergrad")
    budget = "evaluations" if name == "evomm" else "budget"
    chosen = cell("roberta", *SHORT, f"merge={name}", f"merge.search.{budget}=12")
    done = pipeline.run(chosen, shop)
    scores = [one["score"] for one in done.tried]
    assert len(scores) <= 12 and done.rows[0]["tuned_score"] == max(scores)
    start = {"evomm": 1 / 3}.get(name, 0.0)
    assert done.tried[0]["point"] == pytest.approx(dict.fromkeys(("cola", "sst2", "stsb"), start))
    few = "labeled tune" if name == "evomm" else "few labeled tune"
    assert done.rows[0]["data"] == [few]
    assert ("note" in done.rows[0]["search"]) == (name != "evomm")


def test_lorahub_searches_a_sum_of_factors_and_its_twin_one_of_deltas(problem):
    point = {"cola": 0.9, "sst2": -0.4, "stsb": 0.6}
    w = torch.tensor(list(point.values()))[:, None, None]
    factors, deltas = problem("merge=lorahub_search"), problem("merge=lorahub_delta")
    for one, expected in (
        (factors, lambda u: (w * u.B).sum(0) @ (w * u.A).sum(0)),
        (deltas, lambda u: (w * u.delta).sum(0)),
    ):
        merged = one.family.outcome({}, one.family.read(point))
        for module, update in one.bench.updates.items():
            torch.testing.assert_close(merged.updates[module].delta, expected(update))
        penalised = one.score(dict.fromkeys(point, 1.0))
        (entry,) = one.history.entries[-1:]
        assert penalised == pytest.approx(sum(entry["tasks"].values()) / 3 - 0.05)
        one.history.rewind(0)


def test_a_finished_search_is_never_repeated_and_a_killed_one_goes_on(cell, shop, monkeypatch):
    chosen = cell("roberta", *SHORT, "merge=task_arithmetic", "search=grid")
    wanted, calls, plain = needs.searched(chosen), [], Bench.each

    def counted(self, result, split, *beside, **more):
        calls.append(split)
        if calls.count("tune") == 3 and len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, result, split, *beside, **more)

    monkeypatch.setattr(Bench, "each", counted)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(chosen, shop)
    assert not shop.store.has(wanted)
    first = pipeline.run(chosen, shop)
    assert calls.count("tune") == 3 + 3  # the third was cut off, of five
    assert [one["point"]["scaling"] for one in first.tried] == [0.1, 0.3, 0.5, 0.7, 1.0]

    monkeypatch.setattr(Searched, "build", lambda *_: pytest.fail("searched again"))
    other = cell("roberta", *SHORT, "merge=task_arithmetic", "search=grid", "study=another")
    again = pipeline.run(other, shop)
    assert [r["value"] for r in again.rows] == [r["value"] for r in first.rows]
    told = read_told(shop.store.folder(wanted))
    assert told["settings"] == first.rows[0]["chosen"] and told["evaluations"] == 5


def test_any_merge_is_searched_by_group_and_task(cell, shop):
    pytest.importorskip("optuna")
    chosen = cell(
        "roberta", *SHORT, "merge=ties", "search=optuna", "search.trials=6", "search.startup=3",
        "search.family.groups=2", "search.family.per_task=true",
    )  # fmt: skip
    done = pipeline.run(chosen, shop)
    names = {f"group{g}/{task}" for g in (0, 1) for task in ("cola", "sst2", "stsb")}
    assert set(done.tried[0]["point"]) == {"scaling", *names}
    assert done.tried[0]["point"] == {"scaling": 1.0, **dict.fromkeys(names, 1.0)}
    assert set(done.rows[0]["chosen"]) == {"scaling"}
    wanted = needs.searched(chosen)
    adapters = [read_adapter(f) for f in shop.store.get_all(needs.fine_tunes(chosen), shop)]
    bench = Bench(chosen, adapters, shop)
    result, _ = outcome(chosen, bench, {}, shop.store.folder(wanted))
    found = [one.values[t.headline] for t, one in zip(chosen.tasks, bench.scores(result, "tune"))]
    assert sum(found) / 3 == pytest.approx(done.rows[0]["tuned_score"])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["merge=adamerging_task", "dataset.only=[stsb]"], "stsb is the only one"),
        (["merge=wemoe", "dataset.only=[stsb]"], "no task of stsb has anything to say by entropy"),
        (["merge=adamerging_layer", "protocol.holdout=0", "protocol.select=validation",
          "merge.search.objective.split=tune"], "objective.split=tune: protocol.holdout=0"),
        (["merge=ties", "search=optuna", "search.family.groups=9"], "groups=9 of 2 layers"),
        (["merge=ties", "search=optuna", "search.trials=0"], "trials: .* greater than 0"),
        (["merge=average", "search=cmaes", "search.family.values=null"], "has no range"),
        (["merge=adamerging_task", "merge.search.lr=-1"], "lr: .* greater than 0"),
        (["merge=adamerging_task", "merge.search.objective.split=test"], "objective.split"),
        (["merge=lorahub_search", "merge.search.optimizer=Nope"], "no optimizer 'Nope'"),
        (["merge=lorahub_search", "merge.search.family.groups=2"], "one number a task"),
        (["merge=adamerging_task", "+merge.search.family.depth=3"], "depth"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_before_anything_is_trained(cell, workshop, overrides, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        pipeline.run(cell("roberta", *overrides), workshop)
    assert "\n" not in str(caught.value)
    assert not list(workshop.store.root.glob("FineTune/[!.]*"))


DISTILLED = ["merge=prodistill", "merge.search.samples=8"]


@pytest.mark.parametrize("grain", ["rank", "entry"])
def test_blocks_of_equal_experts_are_learned_to_the_last_digit(problem, grain):
    """Three times the same adapter: coefficients that sum to 1 are as good as any expert."""
    one = problem(*DISTILLED, f"merge.search.family.grain={grain}")
    bench = one.bench
    for module, stack in bench.updates.items():
        same = LowRank(stack.A[:1].expand_as(stack.A), 5 * stack.B[:1].expand_as(stack.B))
        bench.updates[module] = one.family.scene.updates[module] = same
    found = prodistill(one, samples=8, epochs=60, lr=0.02, batch_size=8)
    assert [entry["block"] for entry in one.history.entries] == [0, 1]
    start = problem(*DISTILLED).family
    merged, first = (
        (
            dict(family.outcome({}, tensors).updates)
            for family, tensors in ((one.family, found.tensors), (one.family, start.start))
        )
        if grain == "rank"
        else (dict(one.family.outcome({}, found.tensors).updates), None)
    )
    batches = [{k: v for k, v in b.items()} for b in bench.data[0].batches("tune", 8, 8)]

    def outputs(updates):
        with applied(bench.net, updates, bench.heads[0]) as net:
            return logits(net, batches)[0]

    goal = outputs({m: stack.task(0) for m, stack in bench.updates.items()})
    near = (outputs(merged) - goal).norm()
    assert near < 0.05 * (outputs({}) - goal).norm()
    if first:
        assert near < (outputs(first) - goal).norm()


def test_a_killed_distillation_goes_on_with_its_block(problem, monkeypatch):
    straight = problem(*DISTILLED)
    whole = prodistill(straight, samples=8, epochs=3, lr=0.01, batch_size=8)
    straight.history.rewind(0)
    (straight.history.folder / "state.safetensors").unlink()
    cut, calls = problem(*DISTILLED), []

    def tick():
        calls.append(1)
        if len(calls) == 12:  # in the second block: a block has 3 epochs of 3 tasks
            raise KeyboardInterrupt

    monkeypatch.setattr(cut, "tick", tick)
    with pytest.raises(KeyboardInterrupt):
        prodistill(cut, samples=8, epochs=3, lr=0.01, batch_size=8)
    again = problem(*DISTILLED)
    monkeypatch.setattr(again, "tick", lambda: calls.append(1))
    resumed = prodistill(again, samples=8, epochs=3, lr=0.01, batch_size=8)
    assert len(calls) == 12 + 9
    for module, tensor in whole.tensors.items():
        assert torch.equal(resumed.tensors[module], tensor)


@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
@pytest.mark.parametrize("name", ["prodistill", "surgery"])
def test_learned_merges_run_on_every_family(cell, workshop, family, name):
    quick = {"prodistill": ["merge.search.epochs=2", "merge.search.samples=8"],
             "surgery": ["merge.search.steps=2"]}[name]  # fmt: skip
    rows = pipeline.run(cell(family, *SHORT, f"merge={name}", *quick), workshop).rows
    assert rows[0]["data"] == ["unlabeled tune"]


@pytest.mark.parametrize(
    ("name", "refusal"),
    [("adamerging_task", None), ("surgery", "a module of its own"), ("wemoe", "chooses among")],
)
def test_what_was_found_is_exported_or_refused_in_a_sentence(cell, shop, tmp_path, name, refusal):
    chosen = cell("roberta", *SHORT, f"merge={name}", "merge.search.steps=2")
    done = pipeline.run(chosen, shop)

    def written():
        return export(chosen, done.rows, tmp_path / "out", shop, rank=None, merged=False, task=None)

    if refusal:
        with pytest.raises(ValueError, match=refusal):
            written()
        assert not (tmp_path / "out").exists()
        return
    saved = read_adapter(written()).updates
    folders = shop.store.get_all(needs.fine_tunes(chosen), shop)
    bench = Bench(chosen, [read_adapter(folder) for folder in folders], shop)
    result, _ = outcome(chosen, bench, {}, shop.store.folder(needs.searched(chosen)))
    for module, update in result:
        torch.testing.assert_close(saved[module].delta, update.delta, rtol=1e-4, atol=1e-6)
