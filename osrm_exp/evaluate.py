"""A merge of somebody's adapters, scored on a suite's tasks, without a store or a job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from osrm_exp.artifacts import Workshop
from osrm_exp.artifacts.given import read_given
from osrm_exp.bench import Bench
from osrm_exp.compose import cell_from, configuration
from osrm_exp.lora import Result, Update
from osrm_exp.model import skeleton
from osrm_exp.store import Store


def evaluate(
    merged: Mapping[str, Update], adapters: Mapping[str, Path | str], /, *overrides: str,
    model: str, suite: str, split: str = "validation",
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Every metric of every task, each with the head of its own adapter.

    Args:
        merged: what `merge` returned for these adapters, in this order.
        adapters: by task of the suite, folders or hub ids (`org/name@revision`), heads included.
        overrides: of the config, as `model.path=DIR`, `dataset.path=DIR`, `trainer=gpu`.
        model: a file of conf/model.
        suite: a file of conf/dataset.
        split: `validation`, or `tune`, the slice held out of train.

    Raises:
        ValueError: an unknown task, an adapter or a module that does not fit the model.
    """
    config = configuration([f"model={model}", f"dataset={suite}", *overrides])
    config["dataset"]["only"] = list(adapters)
    for task in config["dataset"]["tasks"].keys() & adapters.keys():
        config["dataset"]["tasks"][task]["adapter"] = str(adapters[task])
    cell = cell_from(config)
    named = dict(skeleton(cell.model, 1, auto=cell.tasks[0].kind.auto).named_modules())
    if unknown := [module for module in merged if module not in named]:
        raise ValueError(f"merged has the module {unknown[0]}, which model={model} does not")
    workshop = Workshop(Store(config["paths"]["store"]), progress=False, **config["trainer"])
    bench = Bench(cell, [read_given(one) for one in cell.given.values()], workshop)
    found = bench.scores(Result(merged), split)
    return {task.name: scored.values for task, scored in zip(cell.tasks, found)}
