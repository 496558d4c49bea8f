"""The experiments of the paper: each composes at every size and runs end to end when tiny.

A tiny sweep has all arms with all merges; here every value of every axis runs once, not their
product, and of the longest axes a few (`FEWER`). What cells need is built once for this file.
"""

from __future__ import annotations

from itertools import cycle, islice

import pytest

from osrm_exp import CONF, pipeline
from osrm_exp.artifacts import Workshop
from osrm_exp.compose import cell_from, configuration, sweep
from osrm_exp.overrides import ordered
from osrm_exp.report.frame import lines
from osrm_exp.report.report import write_report
from osrm_exp.report.rows import read_rows, write_rows
from osrm_exp.report.scores import scores
from osrm_exp.store import Store
from osrm_exp.study import check_study

NAMES = sorted(p.stem for p in (CONF / "experiment" / "paper").glob("*.yaml"))
MAIN = ("roberta_large", "t5_large", "llama3_2_1b", "llama3_2_3b", "llama3_8b")
MERGES = {"pretrained", "individual", "average", "task_arithmetic", "fisher", "regmean", "ties",
          "knots_ties", "emr"}  # fmt: skip
FEWER = {
    "llama3_2_3b": "merge=individual,regmean,ties",  # llama3_2_1b has them all
    "llama3_8b": "merge=individual,regmean,ties",
    "lambda": "merge.scaling=0,0.5,1",
    "tasks": "dataset.only=[qqp,rte],[sst2,mnli,qnli],[cola,sst2,mrpc,qqp,stsb,mnli,qnli,rte]",
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Workshop:
    return Workshop(Store(tmp_path_factory.mktemp("store")), progress=False)


def cover(cells: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """As few cells as show every value of every axis; the axes are those of `hydra.sweeper`."""
    axes = [list(dict.fromkeys(values)) for values in zip(*cells)]
    return list(islice(zip(*map(cycle, axes)), max(map(len, axes))))


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_runs_end_to_end_when_tiny(name, shop, tmp_path):
    given = [f"+experiment=paper/{name}", "+scale=tiny", f"paths.store={shop.store.root}"]
    given += [FEWER[name]] if name in FEWER else []
    done = set()
    for overrides in cover(list(sweep(given))):
        cell = cell_from(configuration(overrides))
        outcome = pipeline.run(cell, shop)
        write_rows(tmp_path, cell.digest, outcome.rows)
        assert {r["task"] for r in outcome.rows if r["headline"]} == {t.name for t in cell.tasks}
        done.add(cell.digest)
    rows = read_rows(tmp_path)
    assert set(rows.cell) == done and set(rows.experiment) == {f"paper/{name}"}
    assert set(rows.dataset) == {"mini_glue"} and set(rows.seed) == {42}
    text = write_report(tmp_path, draw=False)
    assert "paper/" in text and len(lines(scores(rows))) == len(done)


@pytest.mark.parametrize("name", MAIN)
def test_a_main_table_is_arms_by_merges_by_seeds(name):
    cells = list(sweep([f"+experiment=paper/{name}"]))
    assert len(cells) == 3 * len(MERGES) * 3
    of = {key: {o for c in cells for o in c if o.startswith(key)} for key in ("init", "merge")}
    assert of["merge"] == {f"merge={m}" for m in MERGES}
    assert of["init"] == {"init=gaussian", "init=osrm", "init=osrm_released"}
    config = configuration(cells[0])
    assert config["model"]["name"] == name and config["dataset"]["name"] == "glue"
    assert config["tuning"]["precision"] == "bf16"
    assert config["dataset"]["cap"] == {"train": 105000, "validation": 15000}


def test_epochs_are_the_releases_by_model_task_and_block():
    large = cell_from(configuration(["+experiment=paper/roberta_large"])).tuning
    assert {large.of(t).epochs for t in ("cola", "qqp", "rte")} == {10} and large.lr == 4e-4
    llama = cell_from(configuration(["+experiment=paper/llama3_8b"])).tuning
    epochs = {t: llama.of(t).epochs for t in "mrpc qnli qqp rte sst2 mnli cola stsb".split()}
    assert epochs == dict(mrpc=5, qnli=2, qqp=2, rte=5, sst2=2, mnli=5, cola=5, stsb=5)
    wide = ["+experiment=paper/blocks", "tuning=paper_qkv"]
    ours = cell_from(configuration([*wide, "init=osrm"])).tuning
    epochs = {t: ours.of(t).epochs for t in epochs}
    assert epochs == dict(cola=20, sst2=10, mrpc=20, qqp=10, qnli=10, rte=20, mnli=10, stsb=20)
    base = cell_from(configuration([*wide, "init=gaussian"])).tuning
    assert base.of("rte").lr == 2e-4 and ours.of("rte").lr == base.of("mnli").lr == 4e-4
    assert base.of("rte").epochs == 20  # an init's own settings leave those of the task
    small = cell_from(configuration([*wide, "init=gaussian", "+scale=small"])).tuning
    assert small.of("rte").epochs == 4 and small.of("cola").epochs == 3
    assert small.of("rte").lr == small.lr == 1e-3 and small.lora.blocks == ("q", "k", "v")


def test_what_a_release_sets_for_one_model_is_its_own_alone():
    padding = {
        model: configuration([f"model={model}", "init=osrm_released"])["init"]["statistics"]
        for model in ("roberta_large", "t5_large", "minilm")
    }
    assert padding["roberta_large"]["others"]["padding"] == "eos"
    assert "padding" not in {**padding["t5_large"]["others"], **padding["minilm"]["others"]}
    other = configuration(["model=llama3_8b", "dataset=glue"])["tuning"]
    assert (other["name"], other["epochs"], other["per_task"]) == ("lora", 10, {})


@pytest.mark.parametrize("name", NAMES)
def test_a_scale_is_applied_last_wherever_it_stands(name):
    for scale in ("small", "tiny"):
        given = [f"+scale={scale}", "tuning.lr=0.5", f"+experiment=paper/{name}"]
        assert ordered(given) == [given[2], given[1], given[0]] == ordered(given[::-1])
        config = configuration(given)
        assert config["paths"]["results"] == f"results/paper/{name}/{scale}"
        assert config["paths"]["logs"] == f"outputs/paper/{name}/{scale}"
        assert config["trainer"]["accelerator"] == "cpu" and config["tuning"]["precision"] == "fp32"
        assert config["tuning"]["lr"] == 0.5  # what was typed is not shrunk


def test_a_scale_shrinks_model_rows_and_seeds():
    cells = {
        scale: list(sweep(["+experiment=paper/roberta_large", f"+scale={scale}"]))
        for scale in ("full", "small", "tiny")
    }
    assert [len(cells[s]) for s in ("full", "small", "tiny")] == [81, 27, 27]
    full, small, tiny = (cell_from(configuration(c[0])) for c in cells.values())
    plain = next(iter(sweep(["+experiment=paper/roberta_large"])))
    assert cell_from(configuration(plain)).digest == full.digest
    assert cell_from(configuration(tiny.overrides[::-1])).digest == tiny.digest  # as a row is read
    assert small.model.name == "minilm" and small.dataset == "glue"
    assert {t.name: t.rows.train for t in small.tasks}["cola"] == 5000
    assert tiny.model.name == "roberta_large" and [t.rows.train for t in tiny.tasks] == [32] * 3
    swept = list(sweep(["+scale=small", "+experiment=paper/single_task"]))
    assert {o for c in swept for o in c if o.startswith("model=")} == {"model=minilm"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["+scale=tiny"], r"\+scale=tiny is the size of an experiment: \+experiment=paper/NAME"),
        (["+experiment=quickstart", "+scale=tiny"], r"quickstart has one size: .*experiment/paper"),
        (
            ["+experiment=paper/lambda", "+scale=small", "model=roberta_large"],
            r"paper/lambda is one of model=minilm: .*study=NAME",
        ),
        (
            ["+experiment=paper/t5_large", "model=minilm"],
            r"paper/t5_large is one of model=t5_large: .*study=NAME",
        ),
    ],
)
def test_a_scale_of_nothing_and_a_strange_model_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        check_study(configuration(given))


@pytest.mark.parametrize("given", ["+scale=small,tiny", "+experiment=paper/lambda,paper/tasks"])
def test_one_experiment_and_one_size_a_command(given):
    with pytest.raises(ValueError, match=r"one (scale|experiment) a command"):
        ordered([given, "seed=1,2"])


def test_an_experiment_may_go_through_models_itself():
    for scale in ([], ["+scale=tiny"]):
        check_study(configuration(["+experiment=paper/single_task", "model=t5_large", *scale]))


def test_subsets_take_every_task_as_often():
    cells = sweep(["+experiment=paper/tasks", "init=gaussian", "merge=ties"])
    only = [o for c in cells for o in c if o.startswith("dataset.only=")]
    suites = [o.partition("=[")[2].rstrip("]").split(",") for o in only]
    sizes = [len(s) for s in suites]
    assert sizes == [n for n in range(2, 8) for _ in range(3)] + [8]
    assert len({tuple(s) for s in suites}) == len(suites)
    counts = [sum(task in s for s in suites) for task in suites[-1]]
    assert max(counts) - min(counts) <= 1


def test_a_header_says_command_cost_and_what_is_known():
    for name in NAMES:
        text = (CONF / "experiment" / "paper" / f"{name}.yaml").read_text()
        document = text[: text.index("defaults:")]
        assert f"python -m osrm_exp +experiment=paper/{name} " in document
        for word in ("80 GB", "24 GB", "Known", "OSRM"):
            assert word in document, (name, word)
