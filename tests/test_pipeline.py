import pandas as pd
import pytest
import torch

from osrm_exp import needs, pipeline
from osrm_exp.adapter import read_adapter
from osrm_exp.artifacts.fine_tune import read_start
from osrm_exp.bench import Bench
from osrm_exp.diagnostics import diagnosed, tidy
from osrm_exp.lora import Result
from osrm_exp.model import load_backbone
from osrm_exp.placing import applied
from osrm_exp.spec import FineTune
from osrm_exp.tasks.metrics import Scored

FAMILIES = ["bert", "roberta", "t5", "llama"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cell_trains_merges_and_scores_on_every_family(cell, workshop, family):
    rows = pipeline.run(cell(family, "init=osrm", "merge=ties"), workshop).rows
    headline = [row for row in rows if row["headline"]]
    assert [row["task"] for row in headline] == ["cola", "stsb", "mnli"]
    assert {row["split"] for row in headline} == {"validation", "validation_matched"}
    assert all(-1 <= row["value"] <= 1 for row in rows)
    assert len(headline[0]["adapters"]) == 3


def test_merge_settings_retrain_nothing(cell, workshop, monkeypatch):
    pipeline.run(cell("roberta", "merge=average"), workshop)

    def fail(*args):
        raise AssertionError("trained again")

    monkeypatch.setattr(FineTune, "build", fail)
    for merge in ("task_arithmetic", "ties", "knots_ties", "individual", "pretrained"):
        pipeline.run(cell("roberta", f"merge={merge}"), workshop)
    with pytest.raises(AssertionError, match="trained again"):
        pipeline.run(cell("roberta", "merge=average", "seed=1"), workshop)


def test_individual_is_each_adapter_alone(cell, workshop):
    chosen = cell("roberta", "merge=individual")
    rows = pipeline.run(chosen, workshop).rows
    folders = [workshop.store.folder(needs.fine_tune(chosen, t)) for t in chosen.tasks]
    adapters = [read_adapter(folder) for folder in folders]
    bench = Bench(chosen, adapters, workshop)
    values = bench.scores(Result(adapters[0].updates), "validation")[0].values
    row = next(r for r in rows if r["task"] == "cola" and r["headline"])
    assert row["value"] == values["mcc"]
    assert row["output"].startswith("per_task, lowrank 4")


def test_pretrained_is_the_base_network_with_the_tasks_heads(cell, workshop):
    rows = pipeline.run(cell("roberta", "merge=pretrained"), workshop).rows
    assert rows[0]["output"] == "shared, lowrank 0"


def test_search_chooses_on_the_held_out_slice_and_says_so(cell, workshop):
    rows = pipeline.run(cell("roberta", "merge=task_arithmetic", "search=grid"), workshop).rows
    assert {row["tuned_on"] for row in rows} == {"tune"}
    rows = pipeline.run(
        cell("roberta", "merge=task_arithmetic", "search=grid", "protocol=paper",
             "protocol.holdout=0.0"), workshop,
    ).rows  # fmt: skip
    assert {row["tuned_on"] for row in rows} == {"validation"}
    assert {row["protocol"] for row in rows} == {"paper"}
    rows = pipeline.run(cell("roberta", "merge=task_arithmetic"), workshop).rows
    assert {row["tuned_on"] for row in rows} == {"none"}


def test_search_takes_the_best_candidate(cell, workshop, monkeypatch):
    chosen = cell(
        "roberta", "merge=task_arithmetic", "search=grid", "merge.grid={scaling: [0.1, 0.7]}"
    )
    values = iter([0.2, 0.9])
    seen = []

    def each(self, merged, split, *beside, **more):
        seen.append(split)
        value = next(values) if split == "tune" else 0.5
        for t in self.tasks:
            yield Scored({t.headline: value}, {t.headline: 0.0}, False, 0.5, (0,), (0,), (0,))

    monkeypatch.setattr(Bench, "each", each)
    rows = pipeline.run(chosen, workshop).rows
    assert seen == ["tune", "tune", "validation"]
    assert rows[0]["settings"]["scaling"] == 0.7


def test_a_rank_truncates_and_records_the_error(cell, workshop):
    whole = pipeline.run(cell("roberta", "merge=task_arithmetic"), workshop).rows
    cut = pipeline.run(cell("roberta", "merge=task_arithmetic", "rank=2"), workshop).rows
    assert whole[0]["truncation_error"] is None and whole[0]["output"] == "shared, lowrank 12"
    assert 0 < cut[0]["truncation_error"] < 1 and cut[0]["output"] == "shared, lowrank 2"
    same = pipeline.run(cell("roberta", "merge=task_arithmetic", "rank=12"), workshop).rows
    assert same[0]["truncation_error"] < 1e-6


def test_updates_are_applied_exactly_and_leave_no_trace(cell, workshop):
    chosen = cell("roberta", "merge=average")
    pipeline.run(chosen, workshop)
    folder = workshop.store.folder(needs.fine_tune(chosen, chosen.tasks[0]))
    updates = read_adapter(folder).updates
    torch.manual_seed(0)
    net = load_backbone(chosen.model, 2, precision="fp32").eval()
    batch = {"input_ids": torch.randint(4, 20, (2, 7)), "attention_mask": torch.ones(2, 7).long()}
    plain = net(**batch).logits
    with applied(net, updates), torch.no_grad():
        hooked = net(**batch).logits
    assert torch.equal(net(**batch).logits, plain)
    with torch.no_grad():
        for name, update in updates.items():
            net.get_submodule(name).weight += update.delta
        dense = net(**batch).logits
    torch.testing.assert_close(hooked, dense, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(hooked, plain, atol=1e-5)


def test_arms_of_one_initialisation_have_names_of_their_own(cell):
    plain = cell("roberta", "init=osrm")
    changed = cell("roberta", "init=osrm", "init.row_norm=gaussian", "tuning.lr=0.1")
    assert plain.arm == "osrm"
    assert changed.arm == "osrm row_norm=gaussian"
    assert "lr=0.1" in changed.schedule
    for typed in (f"{STSB}={{intermediate: mnli}}", f"{STSB}.intermediate=mnli"):
        label = cell("roberta", typed).schedule
        assert label.count("per_task.stsb.intermediate=mnli") == 1


STSB = "+tuning.per_task.stsb"
SMALLER = "{r: 2, lora_alpha: 16, lora_dropout: 0, use_rslora: false, blocks: [q, v]}"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["tuning.lora.r=64"], "tuning.lora.r=64 is above the width"),
        (["tuning.lora.r=0"], "tuning.lora.r"),
        (["tuning.lora.blocks=[z]"], "names 'z'"),
        (["+tuning.momentum=1"], "tuning.momentum is not an option"),
        (["+merge.momentum=1"], "momentum"),
        (["dataset.only=[nope]"], "dataset.only names"),
        (["dataset.path=./nowhere"], "is not a folder"),
        (["dataset.rows.train=1000"], "has 60 rows, 1000 asked for"),
        (["dataset.tasks.cola.text=[words]"], "no column 'words'"),
        (["dataset.tasks.mnli.labels=[yes,no]"], "holds the label 2"),
        (["dataset.tasks.cola.headline=bleu"], "headline 'bleu'"),
        (["protocol.holdout=0"], "holdout"),
        (["init=osrm", "dataset.only=[cola]"], "at least two tasks"),
        (["+momentum=1"], "momentum is not an option; the config has"),
        (["+paths.cache=x"], "paths.cache is not an option"),
        (["+search.trials=9"], "search.trials is not an option"),
        (["+init.scale=2"], "init gaussian: .*'scale'; it takes no option"),
        (["init=pissa", "+init.scale=2"], "init.scale is not an option"),
        (["init.freeze=C"], "init.freeze: .* 'A', 'B' or 'both'"),
        (["init.row_norm=long"], "row_norm is 'long'"),
        ([f"{STSB}.intermediate=qqp"], "stsb starts .*=qqp; the tasks here are: cola, stsb, mnli"),
        (["tuning.intermediate=mnli"], "=mnli, which has one itself"),
        ([f"{STSB}={{intermediate: mnli, lora: {SMALLER}}}"], "may differ in lora_dropout alone"),
        ([f"{STSB}.intermediate=mnli", "init=pissa"], "init.peft=pissa starts from base weights"),
        (["model.heads=[roberta]"], r"holds .*layer\.0.*query, which LoRA adapts"),
        (["model.heads=[]"], r"model\.heads=\[\] leaves out classifier\.out_proj"),
        (["model.heads=[classifier.dense]"], r"leaves out classifier\.out_proj"),
        (["init=osrm", "+init.statistics.others.layer=2"], "others gram: .*'layer'"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(cell, workshop, overrides, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        pipeline.run(cell("roberta", "merge=task_arithmetic", *overrides), workshop)
    assert "\n" not in str(caught.value)
    assert not list(workshop.store.root.glob("FineTune/[!.]*"))


def test_a_diverging_loss_names_the_way_out_and_keeps_nothing(cell, workshop):
    with pytest.raises(ValueError, match=r"loss is nan at step .* lower tuning.lr"):
        pipeline.run(
            cell("roberta", "merge=average", "tuning.lr=1e30", "tuning.clip=null"), workshop
        )
    assert not list(workshop.store.root.glob("FineTune/[!.]*"))


def test_diagnostics_belong_to_the_adapters_and_agree_with_them(cell, workshop):
    chosen = cell("roberta", "merge=individual", "diagnostics=layers", "init=osrm")
    other = cell("roberta", "merge=ties", "diagnostics=layers", "init=osrm")
    assert needs.diagnosis(other) == needs.diagnosis(chosen)  # of adapters, not of a merge
    assert other.digest == cell("roberta", "merge=ties", "init=osrm").digest
    pipeline.run(chosen, workshop)
    rows = tidy(pd.DataFrame(diagnosed(chosen, workshop)))
    modules = [
        f"roberta.encoder.layer.{i}.attention.self.{b}" for i in (0, 1) for b in ("query", "value")
    ]
    assert (
        sorted(set(rows.module)) == modules
        and set(rows.seed) == {42}
        and set(rows.init) == {"osrm"}
    )
    pairs = rows[(rows.metric == "response_A") & (rows.stage == "start")]
    assert len(pairs) == 4 * 3 * 3
    foreign = pairs[pairs.task != pairs.other].groupby("module").value.mean()
    own = pairs[pairs.task == pairs.other].groupby("module").value.mean()
    assert (foreign < own).all()  # what OSRM's start is for
    folder = workshop.store.folder(needs.fine_tune(chosen, chosen.tasks[0]))
    A, start = read_adapter(folder).updates[modules[0]].A, read_start(folder)[modules[0]]
    drift = rows[(rows.metric == "drift_A") & (rows.module == modules[0]) & (rows.task == "cola")]
    assert drift.value.item() == pytest.approx(((A - start).norm() / start.norm()).item(), rel=1e-3)
