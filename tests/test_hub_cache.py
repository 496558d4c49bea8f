"""Models and adapters by hub id, from a cache laid out as the hub's, without a network."""

import shutil

import huggingface_hub.constants
import pytest

from osrm_exp import hub, needs, pipeline
from osrm_exp.adapter import read_adapter
from osrm_exp.compose import cell_from
from osrm_exp.merging import merge
from osrm_exp.report.report import write_report
from osrm_exp.report.rows import write_rows

ONLY = ("dataset.only=[cola,mnli]", "tuning.epochs=1")
COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """`cached(name, folder, commit)`: the folder's files are that commit, and branch main."""
    for constant, value in {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": True}.items():
        monkeypatch.setattr(huggingface_hub.constants, constant, value)
    monkeypatch.setattr(hub, "_lost", {})

    def put(name, folder, commit=COMMIT):
        home = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, home / "snapshots" / commit)
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / "main").write_text(commit)

    return put


@pytest.fixture
def trained(cell, workshop, cached):
    """Adapters of ours as `me/cola` and `me/mnli`."""
    chosen = cell("roberta", *ONLY)
    for task, folder in zip(
        chosen.tasks, workshop.store.get_all(needs.fine_tunes(chosen), workshop)
    ):
        cached(f"me/{task.name}", folder)
    return chosen


def given(revision):
    return [f"+dataset.tasks.{task}.adapter=me/{task}@{revision}" for task in ("cola", "mnli")]


def test_adapters_of_a_commit_take_the_place_of_fine_tunings(cell, workshop, trained):
    ours = pipeline.run(trained, workshop).rows
    rows = pipeline.run(cell("roberta", *ONLY, *given(COMMIT)), workshop).rows
    assert [row["value"] for row in rows] == [row["value"] for row in ours]
    assert rows[0]["inputs"]["given"]["cola"] == f"me/cola@{COMMIT}" and rows[0]["unpinned"] == []
    with pytest.raises(
        ValueError,
        match=rf"me/cola@{OTHER} is no folder here, and could be had neither from the hub",
    ):
        pipeline.run(cell("roberta", *ONLY, *given(OTHER)), workshop)


def test_a_branch_that_moved_is_another_adapter(cell, workshop, trained, cached, tmp_path):
    """`main` is read as it stands, and rows say that nothing pins it."""
    before = pipeline.run(cell("roberta", *ONLY, *given("main")), workshop).rows
    names = [one.rpartition(":")[0] for one in before[0]["unpinned"]]
    assert names == ["me/cola@main", "me/mnli@main"]
    moved = cell("roberta", *ONLY, "seed=7")
    folder = workshop.store.get_all(needs.fine_tunes(moved), workshop)[0]
    cached("me/cola", folder, OTHER)
    after = pipeline.run(cell("roberta", *ONLY, *given("main")), workshop).rows
    assert before[0]["contents"][0] != after[0]["contents"][0]
    assert before[0]["contents"][1] == after[0]["contents"][1]
    write_rows(tmp_path / "out", "c", after)
    assert "it may move: me/cola@main:" in write_report(tmp_path / "out", draw=False)


def test_a_model_of_a_branch_runs_and_says_so(configured, workshop, checkpoints, cached):
    cached("me/tiny", checkpoints["roberta"])

    def at(revision):
        path = ("model.path=me/tiny", f"model.revision={revision}", "merge=pretrained")
        return cell_from(configured("roberta", *ONLY, *path))

    assert pipeline.run(at("main"), workshop).rows[0]["unpinned"] == ["me/tiny@main"]
    for revision, said in (("null", ["me/tiny"]), (COMMIT, [])):
        chosen = at(revision)
        assert pipeline.said_of(chosen, chosen.merge)["unpinned"] == said
    with pytest.raises(ValueError, match=rf"me/tiny@{OTHER} could be had neither"):
        pipeline.run(at(OTHER), workshop)


def test_merge_reads_them_too(trained, cached):
    found = merge("average", ["me/cola@main", f"me/mnli@{COMMIT}"])
    assert found.keys() == read_adapter("me/cola").updates.keys()
    with pytest.raises(ValueError, match="neither from the hub"):
        merge("average", ["me/cola", "me/nowhere"])
