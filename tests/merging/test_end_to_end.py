"""Every file of conf/merge as users run it: composed, its statistics collected, scored on tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from osrm_exp import pipeline
from osrm_exp.artifacts import Workshop
from osrm_exp.merging.api import configured
from osrm_exp.spec import FineTune
from osrm_exp.store import Store

CONF = Path(__file__).parents[2] / "conf" / "merge"
QUICK = {"steps": 2, "evaluations": 3, "budget": 3, "epochs": 1, "trials": 4}  # of a search
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Workshop:
    """One store for all methods: three adapters are trained, once."""
    store = Store(tmp_path_factory.mktemp("store"))
    return Workshop(store, progress=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_runs_from_its_file_to_its_rows(cell, shop, name):
    search = configured(name).search
    options = search.call.options if search and search.call else {}
    quick = [f"merge.search.{key}={value}" for key, value in QUICK.items() if key in options]
    if search and search.first and "iterations" in search.first.call.options:
        quick.append("merge.search.first.iterations=2")
    if search and search.objective and search.objective.weight is not None:
        quick.append("merge.search.objective.alignment=[cola]")  # no task of the suite refuses
    if search and search.family and search.family.call.options.get("groups") == 4:
        quick.append("merge.search.family.groups=2")  # of as many layers
    if name == "dis":
        quick.append("merge.search.family.allow_depth_change=true")
    if name == "lm_cocktail_safe":
        quick.append("merge.statistics.losses.alignment=[cola]")
    suite = ["dataset.only=[cola,stsb]"] if "two_tasks" in configured(name).laws else []
    chosen = cell("roberta", f"merge={name}", "tuning.epochs=1", *suite, *quick)
    rows = pipeline.run(chosen, shop).rows
    assert [r["task"] for r in rows if r["headline"]] == [task.name for task in chosen.tasks]
    assert all(row["value"] == row["value"] for row in rows)
    assert {row["merge"] for row in rows} == {name}
    form, kind = rows[0]["output"].split(", ")
    assert form in ("shared", "per_task", "routed") and kind.split()[0] in ("lowrank", "dense")
    assert len(list(shop.store.root.glob(f"{FineTune.__name__}/[!.]*"))) <= 3


def test_a_statistic_of_nothing_known_is_refused_before_anything_is_trained(cell):
    with pytest.raises(ValueError, match=r"merge\.statistics\.gram\.of: .*'suite'"):
        cell("roberta", "merge=regmean", "merge.statistics.gram.of=pretraind")
