"""An init with the tuning that is its own: what one arm of a comparison trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from osrm_exp import searchpath
from osrm_exp.overrides import plain
from osrm_exp.record import build, meaning
from osrm_exp.spec import Arm, Init, Tuning


def arm_of(name: str, init: Mapping[str, Any], config: Mapping[str, Any], tasks: list[str]) -> Arm:
    """An init with its tuning: `tuning.per_init` holds what is its own, as a learning rate."""
    tuning = dict(config["tuning"])
    per_init = tuning.pop("per_init", {})
    nested = isinstance(per_init, Mapping) and all(
        isinstance(v, Mapping) for v in per_init.values()
    )
    if not nested:
        raise ValueError(f"tuning.per_init: it holds settings by init (got {per_init!r})")
    if unknown := [one for one in per_init if not searchpath.file("init", one)]:
        raise ValueError(f"tuning.per_init names {unknown[0]!r}, which is no file of conf/init")
    built = build(Init, init, "init")
    own = plain(OmegaConf.merge(tuning, per_init.get(name, {})))
    settings = _tuning(own, config["dataset"], built, tasks)
    return Arm(name=name, init=built, tuning=settings)


def init_of(name: str) -> dict[str, Any]:
    """The init of `conf/init/<name>.yaml` as it stands there."""
    file = searchpath.file("init", name)
    if file is None:
        raise ValueError(f"heads={name} is no file of conf/init: null takes every adapter's own")
    return plain(OmegaConf.load(file))


def _tuning(
    fields: Mapping[str, Any], suite: Mapping[str, Any], init: Init, tasks: list[str]
) -> Tuning:
    """The tuning, with no more in `per_task` than what differs, for the tasks that there are."""
    tuning = build(Tuning, fields, "tuning")
    for name in tuning.per_task:
        if name not in suite["tasks"]:
            raise ValueError(f"tuning.per_task names {name!r}; {suite['name']} has no such task")
        if given := {"name", "per_task"} & tuning.per_task[name].keys():
            raise ValueError(f"tuning.per_task.{name}.{min(given)} is not an option")
    _check_intermediates(tasks, tuning, init.peft)
    common = tuning.model_dump()
    changed = {
        task: {k: v for k, v in own.items() if meaning(v) != meaning(common[k])}
        for task, own in tuning.per_task.items() if task in tasks
    }  # fmt: skip
    return tuning.model_copy(update={"per_task": {t: own for t, own in changed.items() if own}})


def _check_intermediates(names: list[str], tuning: Tuning, peft: bool | str) -> None:
    """Whether every task that starts from another one's adapter can."""
    settings = {name: tuning.of(name) for name in names}
    for name, own in settings.items():
        first = own.intermediate
        if first is None:
            continue
        what = f"{name} starts from tuning.intermediate={first}"
        if first not in settings:
            raise ValueError(f"{what}; the tasks here are: {', '.join(names)}")
        if settings[first].intermediate:
            raise ValueError(f"{what}, which has one itself: set it under tuning.per_task")
        if _shape(settings[first]) != _shape(own):
            raise ValueError(f"{what}; their tuning.lora may differ in lora_dropout alone")
        if peft is not True:
            raise ValueError(f"{what}, but init.peft={peft} starts from base weights: take another")


def _shape(tuning: Tuning) -> dict[str, Any]:
    return tuning.lora.model_dump(exclude={"lora_dropout"})
