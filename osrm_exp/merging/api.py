"""Merging from Python: `merge("ties", ["adapters/cola", "adapters/sst2"], density=0.1)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osrm_exp import searchpath
from osrm_exp.adapter import Adapter, read_adapter, stacked
from osrm_exp.lora import LowRank, Update
from osrm_exp.related import warn_of_bases

if TYPE_CHECKING:
    from osrm_exp.spec import Merge

Given = Path | str | Adapter | Mapping[str, LowRank]


def merge(name: str, adapters: Sequence[Given], /, **options: Any) -> Mapping[str, Update]:
    """Adapters merged by the method of `conf/merge/<name>.yaml`, `{module: Update}`.

    Warns where adapters name different base models.

    Args:
        name: a method; its YAML explains the hyperparameters and holds their defaults.
        adapters: PEFT folders, hub ids (`org/name[@revision]`), what `read_adapter` returned, or
            updates by module; one that lacks a module does not change it.
        options: hyperparameters that shall differ from the defaults, and the statistics that the
            method asks for, as its function documents them (`gram={module: [task, in, in]}`).

    Raises:
        ValueError: an unknown method or hyperparameter, a missing statistic, unfit adapters.
    """
    method = configured(name)
    if method.search:
        raise ValueError(
            f"{name} is found by a search on rows of the tasks: run it as a cell, "
            f"python -m osrm_exp merge={name} (README), and export it"
        )
    statistics = {k: options.pop(k) for k in method.statistics if k in options}
    if missing := [k for k in method.statistics if k not in statistics]:
        raise ValueError(
            f"{name} needs statistics of the tasks: pass {missing[0]}=..., one entry a module with "
            f"the task axis first, or one a task (osrm_exp.statistics collects them)"
        )
    method = method.with_(**options)
    method.check()
    updates = _stacked(adapters)
    for keyword, values in statistics.items():
        if isinstance(values, Mapping) and (absent := sorted(updates.keys() - values.keys())):
            raise ValueError(f"{keyword} has no entry for the module {absent[0]}")
    return method(updates, **statistics)


def _stacked(adapters: Sequence[Given]) -> dict[str, LowRank]:
    if isinstance(adapters, (str, Path, Mapping, Adapter)):
        raise ValueError(f"adapters is one {type(adapters).__name__}: give a list of adapters")
    adapters = list(adapters)
    names = [
        str(a) if isinstance(a, (str, Path)) else f"adapter {i}" for i, a in enumerate(adapters, 1)
    ]
    given = [_adapter(name, adapter) for name, adapter in zip(names, adapters)]
    warn_of_bases({name: adapter.base for name, adapter in zip(names, given)})
    return stacked([adapter.updates for adapter in given], names)


def _adapter(name: str, given: Given) -> Adapter:
    if isinstance(given, (str, Path)):
        return read_adapter(given)
    if not isinstance(given, (Adapter, Mapping)):
        raise ValueError(
            f"{name} is a {type(given).__name__}: give a folder, a hub id or updates by module"
        )
    updates = given.updates if isinstance(given, Adapter) else given
    base = given.base if isinstance(given, Adapter) else None
    return Adapter({module: _single(name, module, updates[module]) for module in updates}, {}, base)


def _single(name: str, module: str, update: LowRank) -> LowRank:
    """One task's update without its history of gradients."""
    if not isinstance(update, LowRank) or update.A.dim() != 2:
        found = "stack" if isinstance(update, LowRank) else type(update).__name__
        raise ValueError(
            f"{name} holds for {module} no low-rank update of one task but a {found}: give "
            "LowRank(A, B) of osrm_exp.lora, of a merge its .truncate(rank)"
        )
    if update.A.is_meta or update.B.is_meta:
        raise ValueError(f"{name} holds for {module} factors on the meta device: load its weights")
    return replace(update, A=update.A.detach(), B=update.B.detach())


def configured(name: str) -> Merge:
    """The method of `conf/merge/<name>.yaml` at its defaults; also of an own folder of configs.

    Raises:
        ValueError: there is no such file.
    """
    # late: whoever calls the functions themselves reads no config
    from omegaconf import OmegaConf

    from osrm_exp.record import build
    from osrm_exp.spec import Merge

    known = searchpath.files("merge")
    if name not in known:
        raise ValueError(f"there is no merge {name!r}; there are: {', '.join(sorted(known))}")
    config: Any = OmegaConf.to_container(OmegaConf.load(known[name]), resolve=True)
    return build(Merge, config, f"merge {name}")
