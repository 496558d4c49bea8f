"""Studies of hyperparameters: what is refused, what Optuna is told, and that they go on."""

import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from osrm_exp import CONF, status
from osrm_exp.compose import cell_from, configuration
from osrm_exp.rehearsal import rehearse
from osrm_exp.report.rows import read_rows
from osrm_exp.trials import check_scored, scores_of, study

FILES = sorted((CONF / "hparams_search").glob("*.yaml"))


def ends(params, low):
    """The overrides of a file's parameters: what is fixed, and one end of what is swept."""
    parser = OverridesParser.create()
    for one in parser.parse_overrides([f"{key}={value}" for key, value in params.items()]):
        value = one.value()
        if one.is_choice_sweep():
            values = [str(v) for v in value.list]
            yield f"{one.get_key_element()}={values[0 if low else -1]}"
        elif one.is_interval_sweep():
            yield f"{one.get_key_element()}={value.start if low else value.end}"
        else:
            yield f"{one.get_key_element()}={one.get_value_element_as_str()}"


@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_both_ends_of_a_ready_study_are_cells_that_are_scored(file, low, cell):
    found = OmegaConf.load(file)
    assert f"+hparams_search={file.stem}" in file.read_text()
    chosen = cell("roberta", *ends(found.hydra.sweeper.params, low))
    check_scored(chosen, OmegaConf.to_container(found).get("optimized"))
    rehearse(chosen)


@pytest.mark.parametrize(
    "file", sorted((CONF / "wandb_sweep").glob("*.yaml")), ids=lambda f: f.stem
)
def test_a_wandb_sweep_gives_agents_a_command_that_is_a_scored_cell(file):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    found = yaml.safe_load(file.read_text())
    ends = {k: v.get("min", v.get("values", [None])[0]) for k, v in found["parameters"].items()}
    told = create_sweep_command_args({"args": {k: {"value": v} for k, v in ends.items()}})
    told |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [found["program"]]}
    words = [word for one in found["command"] for word in told.get(one[2:-1], [one])]
    assert words[:4] == ["/usr/bin/env", "python", "-m", "osrm_exp"]
    config = configuration(words[4:])
    check_scored(cell_from(config), config["optimized"])
    assert config["optimized"] == "merged" and found["metric"]["name"] == "tuned/merged"
    assert config["logger"]["project"] == found["project"] and len(words) > 12


@pytest.mark.parametrize(
    ("optimized", "overrides", "sentence"),
    [
        ("fast", [], "one or both of merged, single"),
        (["merged", "merged"], [], "one or both of merged, single"),
        ("merged", [], "search=none with merge=task_arithmetic gives no mean score on tune"),
        ("merged", ["search=grid", "merge=average"], "merge=average gives no mean score on tune"),
        ("merged", ["protocol=paper", "search=scored"], "the split that is reported"),
        ("merged", ["protocol.select=validation", "search=scored"], "the split that is reported"),
    ],
)
def test_what_no_study_can_be_told_is_refused(cell, optimized, overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_scored(cell("roberta", *overrides), optimized)


def test_a_study_is_told_the_selecting_split_alone():
    row = {"cell": "c", "tuned_score": 0.6, "value": 0.1, "tuned_on": "tune"}
    rows = [{**row, "task": task, "expert_tuned_score": s} for task, s in (("a", 0.7), ("b", 0.9))]
    rows += [rows[0] | {"metric": "f1"}]  # a second metric of a task counts once
    assert scores_of(rows, None) is None
    assert scores_of(rows, "merged") == 0.6
    assert scores_of(rows, ["single", "merged"]) == pytest.approx((0.8, 0.6))
    with pytest.raises(ValueError, match="hold no merged score"):
        scores_of([{**row, "task": "a", "tuned_score": None}], "merged")
    with pytest.raises(ValueError, match="hold no single score"):
        scores_of([{**row, "task": "a"}], "single")


def test_another_sweep_is_let_alone():
    with study(["merge=average,ties", "seed=1"], True) as more:
        assert more == []


def test_a_missing_plugin_gives_its_line():
    blocked = "import sys; sys.modules['hydra_plugins.hydra_optuna_sweeper'] = None\n"
    blocked += "sys.argv = ['x', '+hparams_search=lora', '-m']\n"
    blocked += "from osrm_exp.__main__ import main; main()"
    answer = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True)
    assert answer.returncode == 1
    assert answer.stderr.strip().endswith('pip install "osrm-exp[sweeper]"')


@pytest.fixture
def command(checkpoints, suite, tmp_path):
    pytest.importorskip(
        "hydra_plugins.hydra_optuna_sweeper._impl", reason='pip install "osrm-exp[sweeper]"',
        exc_type=ImportError,
    )  # fmt: skip
    tiny = [
        "dataset=glue", "dataset.only=[cola,sst2]", "tuning.epochs=1", "tuning.batch_size=16",
        "tuning.max_length=32", "tuning.lora.r=2", "protocol.holdout=0.2", "model=roberta_large",
        f"model.path={checkpoints['roberta']}", f"dataset.path={suite}",
    ]  # fmt: skip
    paths = [f"paths.{k}={tmp_path / k}" for k in ("store", "results", "logs")]
    return [sys.executable, "-m", "osrm_exp", *tiny, *paths]


def states(tmp_path):
    with sqlite3.connect(tmp_path / "results" / "study.db") as known:
        return [state for (state,) in known.execute("select state from trials order by number")]


def values(tmp_path):
    """What Optuna was told, a tuple a trial."""
    asked = "select trial_id, value from trial_values order by trial_id, objective"
    with sqlite3.connect(tmp_path / "results" / "study.db") as known:
        told = known.execute(asked).fetchall()
    return [tuple(v for t, v in told if t == trial) for trial in dict(told)]


def test_a_killed_study_goes_on_with_the_same_command(command, tmp_path):
    four = (*command, "+hparams_search=scaling", "hydra.sweeper.n_trials=4",
            "hydra.sweeper.n_jobs=1", "-m")  # fmt: skip
    process = subprocess.Popen(four, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while len(list(tmp_path.glob("results/rows/*.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = states(tmp_path)
    assert 0 < before.count("COMPLETE") < 4
    told = status.report(tmp_path / "results", tmp_path / "logs")
    assert f": {before.count('COMPLETE')} of 4 trials are complete" in told
    assert shlex.split(told.splitlines()[-1])[3:] == list(four[3:])
    again = subprocess.run(four, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    after = states(tmp_path)
    assert after.count("COMPLETE") == 4 and "RUNNING" not in after
    assert after.count("FAIL") == before.count("RUNNING")
    told = status.report(tmp_path / "results", tmp_path / "logs").splitlines()
    assert told[0].endswith("4 ok") and told[1].endswith("4 of 4 trials are complete")
    assert len(told) == 2
    rows = read_rows(tmp_path / "results")
    best = rows.loc[rows.tuned_score.idxmax()]
    assert f"Best value: {best.tuned_score}" in again.stdout + again.stderr
    assert set(rows.tuned_on) == {"tune"} and len(list(tmp_path.glob("results/study-*.csv"))) == 1


def test_two_scores_need_no_direction_and_take_no_single_one(command, tmp_path):
    both = (*command, "+hparams_search=merged_and_single", "hydra.sweeper.n_trials=2",
            "tuning.epochs=1", "tuning.lora.r=2")  # fmt: skip
    one = subprocess.run([*both, "hydra.sweeper.direction=maximize", "-m"],
                         capture_output=True, text=True)  # fmt: skip
    assert one.returncode == 1 and "leave the direction out" in one.stderr
    assert not (tmp_path / "store").exists()
    alone = subprocess.run(both, capture_output=True, text=True)
    assert alone.returncode == 1 and "a study takes -m" in alone.stdout + alone.stderr
    done = subprocess.run([*both, "-m"], capture_output=True, text=True,
                          env={**os.environ, "TQDM_DISABLE": "1"})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Number of Pareto solutions" in done.stdout + done.stderr
    assert states(tmp_path) == ["COMPLETE"] * 2
    cells = read_rows(tmp_path / "results").groupby("cell")
    scored = [scores_of(own.to_dict("records"), ["merged", "single"]) for _, own in cells]
    assert sorted(values(tmp_path)) == [pytest.approx(pair) for pair in sorted(scored)]
    assert all(0 < one <= 1 for pair in scored for one in pair)
