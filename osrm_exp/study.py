"""A study is what a folder of results is called by."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from osrm_exp.compose import configuration, sweep


def check_study(config: Mapping[str, Any]) -> None:
    """Whether a cell's rows belong into the folder of its experiment.

    Raises:
        ValueError: an experiment on another model or suite than its own, whose rows would come to
            lie among those of the experiment; a scale of nothing, or of what has only one.
    """
    typed = dict(one.lstrip("+").partition("=")[::2] for one in config["overrides"])
    if "scale" in typed:
        _check_scale(typed)
    other = [group for group in ("model", "dataset") if group in typed]
    if "experiment" in typed and other and not typed.keys() & {"study", "paths.results"}:
        _check_groups(typed, other, config)


def _check_groups(typed: Mapping[str, str], other: list[str], config: Mapping[str, Any]) -> None:
    chosen = [f"+{group}={typed[group]}" for group in ("experiment", "scale") if group in typed]
    own = configuration(chosen)
    for group in other:
        if own[group]["name"] != config[group]["name"] and not _swept(chosen, group, typed[group]):
            raise ValueError(
                f"+experiment={typed['experiment']} is one of {group}={own[group]['name']}: name "
                f"the folder for {group}={config[group]['name']} with study=NAME"
            )


def _swept(experiment: list[str], group: str, name: str) -> bool:
    """Whether an experiment goes through this choice by itself."""
    return any(f"{group}={name}" in cell for cell in sweep(experiment))


@lru_cache
def _has_sizes(name: str) -> bool:
    """Whether an experiment keeps the results of its sizes apart."""
    return Path(configuration([f"+experiment={name}"])["paths"]["results"]).name == "full"


def _check_scale(typed: Mapping[str, str]) -> None:
    scale, name = typed["scale"], typed.get("experiment")
    if name is None:
        raise ValueError(
            f"+scale={scale} is the size of an experiment: +experiment=paper/NAME +scale={scale}"
        )
    if not _has_sizes(name):
        raise ValueError(
            f"+experiment={name} has one size: +scale={scale} is for conf/experiment/paper"
        )
