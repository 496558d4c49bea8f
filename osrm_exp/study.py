"""A study is what a folder of results is called by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from osrm_exp.compose import configuration


def check_study(config: Mapping[str, Any]) -> None:
    """Whether an experiment on another model or suite than its own has a folder of its own too.

    Raises:
        ValueError: its rows would come to lie among those of the experiment.
    """
    typed = dict(one.lstrip("+").partition("=")[::2] for one in config["overrides"])
    other = [group for group in ("model", "dataset") if group in typed]
    if "experiment" not in typed or not other or typed.keys() & {"study", "paths.results"}:
        return
    own = configuration([f"+experiment={typed['experiment']}"])
    for group in other:
        if own[group]["name"] != config[group]["name"]:
            raise ValueError(
                f"+experiment={typed['experiment']} is one of {group}={own[group]['name']}: name "
                f"the folder for {group}={config[group]['name']} with study=NAME"
            )
