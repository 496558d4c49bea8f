import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from osrm_exp.compose import configuration
from osrm_exp.job import _cell
from osrm_exp.loggers import public
from osrm_exp.report.rows import read_rows
from osrm_exp.report.scores import scores

TINY = [
    "model=roberta_large", "dataset=glue", "dataset.only=[cola,stsb,mnli]", "tuning.epochs=2",
    "tuning.batch_size=16", "tuning.max_length=32", "tuning.lora.r=4", "tuning.lr=3e-3",
    "protocol.holdout=0.2", "search=grid",
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("model.path=/somewhere/my model", "model.path=(local)"),
        ("~/x", "(local)"),
        ("~me/x", "(local)"),
        ("../x", "(local)"),
        ("+dataset.tasks={cola: {path: '/somewhere'}}", "+dataset.tasks={cola: {path: '(local)"),
        ("hf_abcdefghijklmnop", "(secret)"),
        ("model.path=FacebookAI/roberta-large", "model.path=FacebookAI/roberta-large"),
        ("org/name@main", "org/name@main"),
        ("layer.*.output.dense", "layer.*.output.dense"),
        (0.5, 0.5),
        (None, None),
    ],
)
def test_what_is_of_this_machine_alone_is_not_logged(value, shown):
    assert public({"a": [value]}) == {"a": [shown]}


def test_a_relative_folder_is_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "some" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public("model.path=some/folder") == "model.path=(local)"


def ended(run):
    """The records of an offline wandb run, by type, and its folded config and summary."""
    (file,) = run.glob("*.wandb")
    told = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", file],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    records = [json.loads(line) for line in told.stdout.splitlines()]
    found = {}
    for kind in ("config", "summary"):
        updates = (one[kind]["update"] for one in records if one["type"] == kind)
        found[kind] = {key: value for update in updates for key, value in update.items()}
    found["history"] = [one["history"]["item"] for one in records if one["type"] == "history"]
    (found["exit"],) = (one["exit"]["exit_code"] for one in records if one["type"] == "exit")
    (found["run"],) = (one["run"] for one in records if one["type"] == "run")
    return found, file.read_bytes()


@pytest.fixture(scope="module")
def told(checkpoints, suite, tmp_path_factory):
    """`told(logger, *overrides)`: runs a cell as its job does; its references have run before."""
    root = tmp_path_factory.mktemp("told")
    paths = [f"paths.{key}={root / key}" for key in ("store", "results", "logs")]
    shared = [f"model.path={checkpoints['roberta']}", f"dataset.path={suite}", *paths, *TINY]
    for reference in ("merge=pretrained", "merge=individual"):
        _cell(configuration([*shared, reference, "diagnostics=layers"]))

    def run(logger, *overrides):
        _cell(configuration([*shared, f"logger={logger}", *overrides]))
        return root / "logs" / logger

    return run


@pytest.fixture(autouse=True)
def without_an_account(monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def wandb_run(told):
    """A cell's offline run, read back; its file, and its folder of results."""
    logs = told("wandb", "merge=ties")
    (run,) = logs.glob("wandb/offline-run-*")
    return *ended(run), logs.parents[1] / "results"


def test_a_wandb_run_read_back_says_what_its_cell_was(wandb_run):
    found, content, results = wandb_run
    rows = read_rows(results)
    rows = rows[(rows["merge"] == "ties") & rows.headline]
    cell, first = found["config"]["cell"], rows.iloc[0]
    assert found["exit"] == 0 and found["config"]["outcome"] == "finished"
    assert found["run"]["display_name"] == f"gaussian-ties-s42-{first.cell[:8]}"
    assert found["run"]["host"] == "(local)" and b"/pytest-" not in content
    assert (cell["init"], cell["merge"], cell["setup"]) == ("gaussian", "ties", first.setup)
    assert cell["chosen"] == first.chosen and cell["tuned_on"] == "tune"
    assert [one["scaling"] for one in cell["tried"]] == [0.3, 0.6, 1.0, 1.5, 2.0]
    assert set(cell["experts"]) == {"cola", "stsb", "mnli"}
    summary = found["summary"]
    mean = 100 * rows.value.mean()
    assert summary["merged/average"] == pytest.approx(mean)
    assert summary["lost/average"] == pytest.approx(summary["expert/average"] - mean)
    assert {"chosen/scaling", "cost/merge_seconds", "tuned/merged", "rows.nrows"} <= set(summary)
    # told again: another cell trained it
    curve = [one for one in found["history"] if "cola/epoch_loss" in one]
    assert [one["trainer/global_step"] for one in curve] == [3, 6]


def test_every_panel_draws_what_a_run_was_told(wandb_run):
    workspace = pytest.importorskip(
        "osrm_exp.report.workspace", reason="pip install wandb-workspaces", exc_type=ImportError
    )
    found, _, results = wandb_run
    told = {name.removesuffix(".filenames") for name in found["summary"]}
    told |= {name for one in found["history"] for name in one}
    told |= {"recovered"}  # experts that learned nothing leave nothing to recover
    told |= {f"cell.value.{name}" for name in found["config"]["cell"]}
    told |= {f"figures/interference_{kind}" for kind in ("query", "value")}  # of the cell before
    rows, searches = scores(read_rows(results)), read_rows(results, "searches")
    where = {"entity": "somebody", "project": "osrm_exp"}
    spec = workspace.workspace("x", rows, searches, **where)._to_model().model_dump()["spec"]
    sections = spec["section"]["panel_bank_config"]["sections"]
    assert [one["name"] for one in sections] == [
        "Merged against single", "Coefficients", "Training", "Interference", "Cost"
    ]  # fmt: skip
    asked = set()
    for panel in (panel for section in sections for panel in section["panels"]):
        drawn = panel["config"]
        lists = [drawn.get(key) or [] for key in ("metrics", "media_keys")]
        single = [drawn.get(key) for key in ("x_axis", "y_axis", "group_by")]
        asked |= {one for one in [*lists[0], *lists[1], *single] if one}
    assert len(asked) > 20
    assert {one.removeprefix("summary:") for one in asked} <= told
    report = workspace.report("x", rows, searches, **where)._to_model().model_dump_json()
    assert "| gaussian" in report and "Protocol clean" in report


def test_a_failed_cell_is_a_failed_run_with_its_reason(configured, tmp_path, monkeypatch):
    monkeypatch.setattr("osrm_exp.pipeline.read_adapter", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _cell(configured("roberta", "logger=wandb", "merge=ties"))
    (run,) = (tmp_path / "logs" / "wandb").glob("wandb/offline-run-*")
    found, _ = ended(run)
    assert found["exit"] == 1 and found["config"]["outcome"] == "failed"
    assert found["config"]["reason"] == "division by zero"
    assert found["config"]["cell"]["merge"] == "ties"
    assert any("cola/epoch_loss" in one for one in found["history"])  # heard while it was trained


def test_csv_holds_the_same(told):
    (folder,) = told("csv", "merge=ties", "merge.density=0.3").glob("*/*/*")
    metrics = pd.read_csv(folder / "metrics.csv")
    assert {"merged/average", "expert/average", "search/score", "cola/epoch_loss"} <= set(metrics)
    assert metrics["cola/epoch_loss"].count() == 2 and metrics["search/score"].count() == 5
    assert "chosen:" in (folder / "hparams.yaml").read_text()
    assert len(pd.read_csv(folder / "rows.csv")) and (folder / "figures" / "tasks.png").is_file()


def test_tensorboard_holds_the_same(told):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (folder,) = told("tensorboard", "merge=ties", "merge.density=0.4").glob("*/*/*")
    found = events.EventAccumulator(str(folder), {"images": 0, "tensors": 0, "scalars": 0}).Reload()
    tags = found.Tags()
    assert {"merged/average", "search/score", "cola/epoch_loss"} <= set(tags["scalars"])
    assert [one.step for one in found.Scalars("cola/epoch_loss")] == [3, 6]
    assert {"figures/tasks", "figures/tried_scaling_tune"} <= set(tags["images"])
    told_once = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"cell/chosen/scaling" in told_once and b"/pytest-" not in told_once


def test_an_objective_is_no_score_in_percent(told):
    pytest.importorskip("nevergrad")
    cell = ["merge=lorahub_search", "merge.search.budget=4"]
    before = {*told("csv", "merge=average").glob("*/*/*")}
    (folder,) = {*told("csv", *cell).glob("*/*/*")} - before
    metrics = pd.read_csv(folder / "metrics.csv")
    assert (metrics["search/minus loss"].dropna() < 0).all()
    assert not {"search/score", "tuned/merged"} & {*metrics}
