import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from osrm_exp.report.paired import paired, paired_text

TASKS = ["a", "b", "c", "d"]


def rows(seeds=(1, 2), arms=("gaussian", "osrm"), merges=("ties",)):
    draw = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "setup": "s", "merge": merge, "space": "delta", "seed": seed, "task": task,
            "init": init, "headline": True,
            "value": draw.uniform(0.4, 0.6) + 0.1 * (init == "osrm"),
            "settings": {"density": 0.2, "scaling": scaling}, "chosen": {"scaling": scaling},
        }
        for merge in merges for seed in seeds for task in TASKS
        for init, scaling in zip(arms, (0.3, 0.5))
    )  # fmt: skip


def test_one_seed_is_the_paired_t_interval_over_tasks():
    data = rows(seeds=(1,))
    line = paired(data, "gaussian").iloc[0]
    wide = data.pivot(index="task", columns="init", values="value") * 100
    expected = ttest_rel(wide.osrm, wide.gaussian)
    interval = expected.confidence_interval(0.95)
    assert line.difference == pytest.approx((wide.osrm - wide.gaussian).mean())
    assert (line.low, line.high) == pytest.approx((interval.low, interval.high))
    assert line.better + line.worse == line.tasks == 4


def test_seeds_are_averaged_before_tasks_are_compared():
    data = rows()
    line = paired(data, "gaussian").iloc[0]
    means = data.groupby(["task", "init"]).value.mean().unstack() * 100
    gain = means.osrm - means.gaussian
    assert line.difference == pytest.approx(gain.mean()) and line.seeds == 2
    assert (line.better, line.worse) == ((gain > 0).sum(), (gain < 0).sum())


def test_only_what_both_arms_have_is_compared():
    data = rows()
    data = data[~((data.init == "osrm") & (data.task == "a"))]
    assert paired(data, "gaussian").iloc[0].tasks == 3


def test_merges_are_kept_apart_and_the_text_names_the_baseline():
    data = rows(merges=("ties", "average"))
    assert list(paired(data, "osrm")["merge"]) == ["average", "ties"]
    assert "init − osrm" in paired_text(data, "osrm")


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="no rows of init 'pissa'"):
        paired(rows(), "pissa")
    with pytest.raises(ValueError, match="two cells of one init"):
        paired(pd.concat([rows(), rows()]), "gaussian")
