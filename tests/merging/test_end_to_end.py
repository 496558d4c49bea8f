"""Every file of conf/merge as users run it: composed, its statistics collected, scored on tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from osrm_exp import pipeline
from osrm_exp.artifacts import FineTune, Workshop
from osrm_exp.store import Store

CONF = Path(__file__).parents[2] / "conf" / "merge"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
TWO_TASKS = {"slerp"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Workshop:
    """One store for all methods: three adapters are trained, once."""
    store = Store(tmp_path_factory.mktemp("store"))
    return Workshop(store, {"accelerator": "cpu", "devices": 1}, progress=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_runs_from_its_file_to_its_rows(cell, shop, name):
    suite = ["dataset.only=[cola,stsb]"] if name in TWO_TASKS else []
    chosen = cell("roberta", f"merge={name}", "tuning.epochs=1", *suite)
    rows = pipeline.run(chosen, shop)
    assert [r["task"] for r in rows if r["headline"]] == [task.name for task in chosen.tasks]
    assert all(row["value"] == row["value"] for row in rows)
    assert {row["merge"] for row in rows} == {name}
    form, kind = rows[0]["output"].split(", ")
    assert form in ("shared", "per_task") and kind.split()[0] in ("lowrank", "dense")
    assert len(list(shop.store.root.glob(f"{FineTune.__name__}/[!.]*"))) == 3


def test_the_statistics_of_a_suite_are_the_only_ones_without_a_store(cell, shop):
    declared = {
        name: {how["of"] for how in cell("roberta", f"merge={name}").merge["statistics"].values()}
        for name in NAMES
        if "statistics:" in (CONF / f"{name}.yaml").read_text().split("_target_", 1)[1]
    }
    assert declared["lm_cocktail"] == declared["regmean_pp"] == {"suite"}
    assert set().union(*declared.values()) <= {"suite", "expert", "pretrained"}
