"""Merging from Python: `merge("ties", ["adapters/cola", "adapters/sst2"], density=0.1)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from osrm_exp import CONF
from osrm_exp.adapter import read_adapter, stacked
from osrm_exp.lora import LowRank, Update
from osrm_exp.record import build
from osrm_exp.spec import Merge


def merge(
    name: str, adapters: Sequence[Path | str | Mapping[str, LowRank]], **options: Any
) -> Mapping[str, Update]:
    """Adapters merged by the method of `conf/merge/<name>.yaml`, `{module: Update}`.

    Args:
        name: a method; its YAML explains the hyperparameters and holds their defaults.
        adapters: PEFT folders, or updates by module; one that lacks a module does not change it.
        options: hyperparameters that shall differ from the defaults, and the statistics that the
            method asks for, as its function documents them (`gram={module: [task, in, in]}`).

    Raises:
        ValueError: an unknown method or hyperparameter, a missing statistic, unfit adapters.
    """
    if isinstance(adapters, (str, Path, Mapping)):
        raise ValueError(f"adapters is one {type(adapters).__name__}: give a list of adapters")
    method = configured(name)
    statistics = {k: options.pop(k) for k in method.statistics if k in options}
    if missing := [k for k in method.statistics if k not in statistics]:
        raise ValueError(
            f"{name} needs statistics of the tasks: pass {missing[0]}=..., one entry a module with "
            f"the task axis first, or one a task (osrm_exp.statistics collects them)"
        )
    updates = stacked([a if isinstance(a, Mapping) else read_adapter(a).updates for a in adapters])
    for keyword, given in statistics.items():
        if isinstance(given, Mapping) and (absent := [m for m in updates if m not in given]):
            raise ValueError(f"{keyword} has no entry for the module {absent[0]}")
    chosen = method.with_(**options)
    chosen.check()
    return chosen(updates, **statistics)


def configured(name: str) -> Merge:
    """The method of `conf/merge/<name>.yaml` at its defaults.

    Raises:
        ValueError: there is no such file.
    """
    file = CONF / "merge" / f"{name}.yaml"
    if not file.is_file():
        known = sorted(path.stem for path in file.parent.glob("*.yaml"))
        raise ValueError(f"there is no merge {name!r}; there are: {', '.join(known)}")
    return build(Merge, OmegaConf.to_container(OmegaConf.load(file), resolve=True), f"merge {name}")
