"""Adapters from elsewhere in the place of fine-tunings: the same scores as where they come from."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from osrm_exp import bench, needs, pipeline, preflight
from osrm_exp.artifacts import start, statistic
from osrm_exp.compose import cell_from, configuration
from osrm_exp.export.files import export
from osrm_exp.overrides import public
from osrm_exp.report.report import write_report
from osrm_exp.report.rows import write_rows
from osrm_exp.spec import FineTune

ONLY = ("dataset.only=[cola,mnli]", "tuning.epochs=1")
AT_COMMIT = "org/name@" + "a" * 40
MERGES = ("average", "individual", "ties", "regmean", "fisher")


@pytest.fixture
def saved(cell, workshop, tmp_path):
    """Folders of two adapters of ours, as somebody else would have them, by task."""
    chosen = cell("roberta", *ONLY)
    folders = workshop.store.get_all(needs.fine_tunes(chosen), workshop)
    found = {task.name: tmp_path / f"my {task.name}" for task in chosen.tasks}
    for source, target in zip(folders, found.values()):
        target.mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(source / name, target / name)
    return found


def named(saved):
    return [f"+dataset.tasks.{task}.adapter='{folder}'" for task, folder in saved.items()]


def scores(rows):
    return [(row["task"], row["metric"], row["value"]) for row in rows]


def test_given_adapters_score_as_where_they_come_from(cell, workshop, saved, monkeypatch, tmp_path):
    ours = {m: pipeline.run(cell("roberta", *ONLY, f"merge={m}"), workshop).rows for m in MERGES}
    monkeypatch.setattr(FineTune, "build", lambda *_: pytest.fail("trained again"))
    for merge in MERGES:
        given = cell("roberta", *ONLY, f"merge={merge}", *named(saved))
        outcome = pipeline.run(given, workshop)
        assert scores(outcome.rows) == scores(ours[merge]), merge
        write_rows(tmp_path / "out", given.digest, outcome.rows)
    row = outcome.rows[0]
    assert row["init"].startswith("given:") and row["adapters"] == [
        one.digest for one in given.given.values()
    ]
    assert public(str(saved["cola"])) in " ".join(row["overrides"])
    assert set(row["inputs"]["given"]) == {"cola", "mnli"}
    assert "given:" in write_report(tmp_path / "out")
    out = export(given, outcome.rows, tmp_path / "x", workshop, rank=4, merged=False, task="cola")
    assert (out / "heads" / "mnli.safetensors").is_file()


def test_a_given_adapter_and_a_trained_one_share_a_cell(cell, workshop, saved):
    del saved["mnli"]
    rows = pipeline.run(cell("roberta", *ONLY, "search=grid", *named(saved)), workshop).rows
    assert rows[0]["init"].startswith("gaussian given:") and rows[0]["tuned_on"] == "tune"


def test_the_address_is_the_content(configured, saved, tmp_path):
    plain = cell_from(configured("roberta", *ONLY))
    here = cell_from(configured("roberta", *ONLY, *named(saved)))
    moved = {task: shutil.move(folder, tmp_path / task) for task, folder in saved.items()}
    there = cell_from(configured("roberta", *ONLY, *named(moved)))
    assert here.digest == there.digest != plain.digest
    assert needs.of_inits(needs.fine_tunes(there)) == []
    file = tmp_path / "cola" / "adapter_model.safetensors"
    save_file({k: t * 2 for k, t in load_file(file).items()}, file)
    assert cell_from(configured("roberta", *ONLY, *named(moved))).digest != here.digest


def bare(folder):
    file = folder / "adapter_model.safetensors"
    save_file({k: t for k, t in load_file(file).items() if "lora" in k}, file)


def elsewhere(folder):
    file = folder / "adapter_model.safetensors"
    save_file({k.replace("layer.1", "layer.7"): t for k, t in load_file(file).items()}, file)


def prompt(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "PROMPT"}))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (bare, r"has no head classifier"),
        (elsewhere, r"tasks\.cola\.adapter=.* adapts .*layer\.7.*roberta_large does not have"),
        (prompt, r"is a PROMPT adapter"),
    ],
)
def test_what_cannot_take_the_place_is_refused_before_any_training(
    cell, workshop, saved, spoil, sentence, monkeypatch
):
    spoil(saved["cola"])
    del saved["mnli"]
    monkeypatch.setattr(FineTune, "build", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match=sentence) as caught:
        pipeline.run(cell("roberta", *ONLY, *named(saved)), workshop)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["+dataset.tasks.cola.adapter=/nowhere"], r"cola\.adapter=/nowhere is no folder"),
        (["+dataset.tasks.cola.adapter=org/name"], r"names its revision: org/name@revision"),
        (["+dataset.tasks.cola.adapter=3"], r"cola\.adapter"),
        (["+dataset.tasks.cola.adapter=org/name@"], r"names its revision"),
        (["+dataset.tasks.cola.adapter=a/b/c@main"], r"names its revision"),
        ([f"+dataset.tasks.cola.adapter={AT_COMMIT}", "diagnostics=layers"], "diagnostics=none"),
        ([f"+dataset.tasks.mnli.adapter={AT_COMMIT}", "+tuning.per_task.cola.intermediate=mnli"],
         "cola starts from mnli, which is given"),
    ],
)  # fmt: skip
def test_a_wrong_source_is_refused_at_the_door(configured, overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        cell_from(configured("roberta", *ONLY, *overrides))


@pytest.fixture
def unloaded(monkeypatch):
    for module in (bench, preflight, start, statistic):
        monkeypatch.setattr(module, "load_backbone", lambda *_, **__: pytest.fail("loaded"))


@pytest.mark.parametrize(
    ("block", "overrides", "sentence"),
    [
        ("key", ["merge=regmean"], r"adapter of cola has .*\.key, and merge=regmean asks for a"),
        ("key", ["merge=fisher"], r"name its block in tuning\.lora\.blocks=\['q', 'v'\]"),
        ("attention.output.dense", [], r"adapters of cola .* and mnli .* share no module"),
        ("attention.output.dense", ["merge=regmean"], r"share no module"),
    ],
)  # fmt: skip
def test_an_adapter_of_other_blocks_is_refused_before_a_model_is_loaded(
    cell, workshop, saved, unloaded, block, overrides, sentence
):
    """And before the other task is trained."""
    file = saved["cola"] / "adapter_model.safetensors"
    moved = (
        {"query": block}
        if block == "key"
        else {"attention.self.query": block, "attention.self.value": "drop"}
    )
    tensors = load_file(file)
    for old, new in moved.items():
        tensors = {k.replace(f".{old}.", f".{new}."): t for k, t in tensors.items()}
    save_file({k: t for k, t in tensors.items() if ".drop." not in k}, file)
    del saved["mnli"]
    with pytest.raises(ValueError, match=sentence) as caught:
        pipeline.run(cell("roberta", *ONLY, *overrides, *named(saved)), workshop)
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_rank_is_known_before_training(cell, workshop, saved, unloaded):
    wide = cell("roberta", *ONLY, "merge=peft_linear", "tuning.lora.r=2", *named(saved))
    assert pipeline.rehearse(wide) is None  # by the config alone
    del saved["mnli"]
    with pytest.raises(ValueError, match=r"merge=peft_linear: .* adapters of rank \[2, 4\]"):
        pipeline.run(
            cell("roberta", *ONLY, "merge=peft_linear", "tuning.lora.r=2", *named(saved)), workshop
        )


def test_another_tasks_adapter_does_not_fit(cell, workshop, saved):
    swapped = {"cola": saved["mnli"]}
    with pytest.raises(ValueError, match=r"its head has 3 outputs .* its task needs 2"):
        pipeline.run(cell("roberta", *ONLY, *named(swapped)), workshop)


def test_rows_compose_their_cell_without_the_folder(configured, saved, tmp_path):
    config = configured("roberta", *ONLY, *named(saved))
    cell = cell_from(config)
    inputs = pipeline.said_of(cell, cell.merge)["inputs"]
    shutil.rmtree(saved["cola"])
    assert cell_from(configuration(config["overrides"]), inputs).digest == cell.digest
