import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from osrm_exp.report.paired import UNITS, differences, paired
from osrm_exp.report.paired_tables import paired_text, write_paired
from osrm_exp.report.predictions import write_predictions
from osrm_exp.report.rows import write_rows

TASKS = ["a", "b", "c", "d"]


@pytest.fixture
def rows(row):
    """`osrm` stands 10 points above `gaussian`, with noise; each chose a scaling of its own."""

    def made(seeds=(1, 2, 3), merges=("ties",), **other):
        draw = np.random.default_rng(0)
        return pd.DataFrame(
            row(merge, task, draw.uniform(0.4, 0.6) + 0.1 * (init == "osrm"), seed,
                f"{merge}-{init}", init=init, chosen={"scaling": scaling},
                settings={"density": 0.2, "scaling": scaling}, **other)
            for merge in merges for seed in seeds for task in TASKS
            for init, scaling in (("gaussian", 0.3), ("osrm", 0.5))
        )  # fmt: skip

    return made


def of(table, unit):
    return table[table.unit == unit].iloc[0]


@pytest.mark.parametrize("unit", ["seed", "task"])
def test_the_unit_is_averaged_to_before_it_is_tested(rows, unit):
    data = rows()
    line = of(paired(data, "gaussian", delta=1.0), unit)
    wide = data.pivot_table(index=unit, columns="init", values="value") * 100
    expected = ttest_rel(wide.osrm, wide.gaussian)
    interval = expected.confidence_interval(0.95)
    assert line.difference == pytest.approx((wide.osrm - wide.gaussian).mean())
    assert (line.low, line.high) == pytest.approx((interval.low, interval.high))
    assert line.p == pytest.approx(expected.pvalue) and (line.seeds, line.tasks) == (3, 4)


def test_no_interval_from_one_seed_whatever_the_unit(rows):
    table = paired(rows(seeds=(1,)), "gaussian", delta=1.0)
    assert table[["low", "high", "p", "p_holm", "p_equivalent"]].isna().all(axis=None)
    assert table.difference.notna().all() and set(table.seeds) == {1}


def test_a_coefficient_is_never_averaged_over(row):
    gains = {0.3: 0.1, 1.0: -0.1}
    data = pd.DataFrame(
        row(task=t, seed=s, init=init, settings={"scaling": scaling}, line=f"{init}{scaling}",
            value=0.5 + (gain if init == "osrm" else 0))
        for scaling, gain in gains.items() for s in (1, 2) for t in TASKS
        for init in ("osrm", "gaussian")
    )  # fmt: skip
    table = paired(data, "gaussian", delta=1.0).query("unit == 'seed'")
    assert list(table.settings) == ["scaling=0.3", "scaling=1"]
    assert list(table.difference) == pytest.approx([10, -10])


@pytest.mark.parametrize("key", ["setup", "space", "heads"])
def test_what_does_not_agree_is_not_pooled(rows, key):
    other = rows(**{key: "other"})
    data = pd.concat([rows(), other.assign(cell=key + other.cell)])
    assert len(paired(data, "gaussian", delta=1.0).query("unit == 'seed'")) == 2


def test_a_seed_that_lacks_a_task_or_an_arm_is_left_out_and_named(rows):
    data = rows(seeds=(1, 2, 3, 4))
    gone = (data.init == "osrm") & (data.task == "a") & (data.seed == 1)
    gone |= (data.init == "osrm") & (data.seed == 2)
    gone |= (data.init == "gaussian") & (data.seed == 3)
    gains, missing = differences(data[~gone], "gaussian")
    assert set(gains.seed) == {4} and set(gains.task) == set(TASKS)
    counts = {1: 3, 2: 0, 3: 0}
    assert [m.partition(", ")[2] for m in missing] == [
        f"seed {seed}: {count} tasks in common with gaussian" for seed, count in counts.items()
    ]


def test_nothing_in_common_is_said(rows):
    data = rows(seeds=(1,))
    data = data[~((data.init == "osrm") & (data.task == "a"))]
    table = paired(data, "gaussian", delta=1.0)
    assert table.empty
    text = paired_text(table, *differences(data, "gaussian"), "gaussian", delta=1.0)
    assert "Not compared" in text and "ties delta density=0.2 osrm, seed 1: 3 tasks" in text


def test_holm_is_over_the_merges_of_one_unit_and_references_apart(rows):
    data = rows(merges=("ties", "dare", "average", "individual"))
    table = paired(data, "gaussian", delta=1.0).query("unit == 'task'").set_index("merge")
    merged = table.drop(index="individual").sort_values("p")
    expected = (merged.p * [3, 2, 1]).clip(upper=1).cummax()
    assert list(merged.p_holm) == pytest.approx(list(expected))
    assert table.p_holm["individual"] == table.p["individual"]


def test_equivalence_is_two_tests_and_not_a_missing_difference(rows):
    data = rows(seeds=range(6))
    wide, narrow = (of(paired(data, "gaussian", delta=d), "seed") for d in (20.0, 1.0))
    assert wide.p_equivalent < 0.01 < 0.5 < narrow.p_equivalent


def test_rows_are_redrawn_where_predictions_are(rows):
    data, draw = rows(), np.random.default_rng(1)
    answers = pd.concat(
        pd.DataFrame({"cell": cell, "task": t, "row": range(200), "label": label,
                      "prediction": np.where(draw.random(200) < 0.8, label, 1 - label)})
        for cell in data.cell.unique() for t in TASKS
        for label in [np.arange(200) % 2]
    )  # fmt: skip
    table = paired(data, "gaussian", delta=1.0, predictions=answers)
    assert list(table.unit) == list(UNITS)
    partial = answers[answers.cell != answers.cell.iloc[0]]
    table = paired(data, "gaussian", delta=1.0, predictions=partial)
    assert "seed, task, row" not in set(table.unit)
    with pytest.raises(ValueError, match="share no predicted row of b"):
        paired(data, "gaussian", delta=1.0, predictions=answers[answers.task != "b"])


def test_what_cannot_be_compared_is_refused(rows):
    with pytest.raises(ValueError, match="no rows of init 'pissa'; there are: gaussian, osrm"):
        paired(rows(), "pissa", delta=1.0)
    twice = pd.concat([rows(), rows().assign(cell="z" + rows().cell)])
    with pytest.raises(ValueError, match="two cells of init"):
        paired(twice, "gaussian", delta=1.0)


def test_the_page_shows_every_seed_and_labels_every_interval(tmp_path, rows):
    data = rows()
    for cell, group in data.groupby("cell"):
        write_rows(tmp_path, cell, group.to_dict("records"))
        answers = [
            {"task": t, "row": i, "label": 1, "prediction": 1} for t in TASKS for i in range(50)
        ]
        write_predictions(tmp_path, cell, answers)
    text = write_paired(tmp_path, "gaussian", delta=2.0)
    assert all(f"seed {seed}" in text for seed in (1, 2, 3)) and "init − gaussian" in text
    assert all(f"Drawn: {unit}\n\nConditional on" in text for unit in UNITS)
    assert "equivalent within ±2" in text and "settings" not in text.split("## Seed")[1]
    assert (tmp_path / "paired.md").read_text() == f"{text}\n"
    assert len(pd.read_csv(tmp_path / "paired.csv")) == 4
