"""Overrides -> configuration -> cell, and a sweep -> its cells: what Hydra does, without a job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from osrm_exp import CONF, searchpath, tiny  # noqa: F401  (a resolver of configs)
from osrm_exp.arms import arm_of, init_of
from osrm_exp.door import check_groups, name_of
from osrm_exp.identity import adapter_identity, identity, source_of
from osrm_exp.overrides import STUDY, ordered, plain, points, readable, unswept
from osrm_exp.record import build, digest, meaning
from osrm_exp.spec import Arm, Cell, Given, Merge, Model, Protocol, Search, Task

Inputs = Mapping[str, Any]  # {"weights": identity, "sources", "given": {task: identity}}


def configuration(overrides: Sequence[str]) -> dict[str, Any]:
    """The composed, resolved configuration of one cell, without Hydra's own part."""
    whole = composed(overrides)
    kept = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(whole)  # for ${hydra:...}
    try:
        return plain(kept)
    finally:
        HydraConfig.instance().cfg = before


def sweep(overrides: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The overrides of every cell of `-m`, as Hydra's own sweeper multiplies them out."""
    yield from points(composed(unswept(overrides)).hydra.sweeper.params, overrides)


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration as Hydra composes it, with Hydra's own part."""
    chosen = [*searchpath.override(), *ordered([*map(readable, overrides)])]
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()  # a job may compose another cell than its own
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", chosen, return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = running


def cell_from(config: Mapping[str, Any], inputs: Inputs | None = None) -> Cell:
    """The cell of a composed, resolved configuration; checks everything that needs no model.

    Args:
        config: plain data, see `configuration`.
        inputs: what checkpoint and rows are, where they are known: a row remembers its own.

    Raises:
        ValueError: see `record.build`; also an unknown block, task or folder.
    """
    check_groups(config)
    inputs, own = inputs or {}, config["merge"].get("search")
    search = build(Search, own or config["search"], "merge.search" if own else "search")
    protocol = build(Protocol, config["protocol"], "protocol")
    model = _model(config["model"], inputs.get("weights"))
    tasks = _tasks(config["dataset"], protocol, config["seed"], inputs.get("sources", {}))
    names = [task.name for task in tasks]
    arm = arm_of(config["names"]["init"], config["init"], config, names)
    heads = config["heads"] and arm_of(config["heads"], init_of(config["heads"]), config, names)
    model = _used(model, tasks, [one for one in (arm, heads) if one], config)
    grid = config["merge"].get("grid") if search.call else None  # unsearched it changes no number
    merge = build(Merge, {**config["merge"], "grid": grid}, "merge")
    fields = dict(
        experiment=config["study"], model=model, dataset=config["dataset"]["name"],
        tasks=tasks, tuning=arm.tuning, common=digest(meaning(config["tuning"])), init=arm.init,
        heads=heads, merge=merge, search=search, protocol=protocol,
        diagnostics=config["diagnostics"]["statistics"] or {}, rank=config["rank"],
        seed=config["seed"], given=_given(model, tasks, arm, config, inputs.get("given", {})),
        names=config["names"],
        overrides=[one for one in config["overrides"] if not one.lstrip("+").startswith(STUDY)],
    )  # fmt: skip
    return build(Cell, fields, "cell")


def _used(model: Model, tasks: Sequence[Task], arms: list[Arm], config: Mapping[str, Any]) -> Model:
    """The model with those of its heads and blocks that the tasks need, under the cell's arm and
    under that of the heads alike."""
    if written := _written(tasks):
        model = _headless(model, written, config)
    used, *other = [
        {block for task in tasks for block in arm.tuning.of(task.name).lora.blocks} for arm in arms
    ]
    if other and other != [used]:
        raise ValueError(
            f"heads={arms[1].name} adapts the blocks {', '.join(sorted(*other))} and "
            f"init={arms[0].name} {', '.join(sorted(used))}: tuning.per_init may not part them"
        )
    return model.model_copy(update={"blocks": _blocks(model, used)})


def _blocks(model: Model, used: set[str]) -> dict[str, str]:
    """The blocks that are adapted; what else a model config names changes no number."""
    if unknown := sorted(used - model.blocks.keys()):
        raise ValueError(
            f"tuning.lora.blocks names {unknown[0]!r}; {model.name} has: {', '.join(model.blocks)}"
        )
    return {block: model.blocks[block] for block in sorted(used)}


def _model(config: Mapping[str, Any], weights: str | None) -> Model:
    weights = weights or identity(config.get("path"), config.get("revision"), "model.path")
    return build(Model, {**config, "weights": weights}, "model")


def _tasks(
    suite: Mapping[str, Any], protocol: Protocol, seed: int, sources: Mapping[str, str]
) -> tuple[Task, ...]:
    shared = {k: v for k, v in suite.items() if k not in ("name", "tasks", "only")}
    tasks = []
    for name in _only(suite):
        where = f"dataset.tasks.{name_of(name, 'dataset.tasks')}"
        fields = {**shared, **(suite["tasks"][name] or {})}
        if given := {"name", "holdout", "follows", "source"} & fields.keys():
            raise ValueError(f"{where}.{min(given)} is not an option")
        if fields.get("seed") is None:
            fields |= {"seed": seed, "follows": True}
        path, source = _found(name, fields, sources.get(name))
        fields |= {"path": path, "source": source}
        tasks.append(build(Task, {**fields, "name": name, "holdout": protocol.holdout}, where))
    return tuple(tasks)


def _found(name: str, fields: Mapping[str, Any], known: str | None) -> tuple[str, str]:
    """Where a task's rows lie, and what they are: as known, wherever they lay then."""
    if known:
        return str(Path(fields["path"]).expanduser()), known
    return source_of(name, fields)


def _written(tasks: Sequence[Task]) -> str | None:
    """A task that is answered in words, if all are.

    Raises:
        ValueError: some are and some have heads, which is two kinds of network.
    """
    headed = [task.name for task in tasks if not task.writes]
    written = [task.name for task in tasks if task.writes]
    if headed and written:
        raise ValueError(
            f"{written[0]} is written by a causal language model and {headed[0]} has a head: one "
            "merged network is of one kind, choose with dataset.only"
        )
    return written[0] if written else None


def _headless(model: Model, task: str, config: Mapping[str, Any]) -> Model:
    """The model without heads; what asks for them is refused."""
    if config["heads"]:
        raise ValueError(f"heads={config['heads']}: {task} is written, without a head to take")
    if config["init"].get("freeze") == "both":
        raise ValueError(
            f"init={config['names']['init']} trains a head alone (freeze: both), and {task} is "
            "written, without a head"
        )
    return model.model_copy(update={"heads": ()})


def _given(
    model: Model, tasks: Sequence[Task], arm: Arm, config: Mapping[str, Any],
    known: Mapping[str, str],
) -> dict[str, Given]:  # fmt: skip
    """The adapters that take the place of a fine-tuning, by task."""
    found = {}
    for task in tasks:
        if task.adapter is not None:
            where, name = f"dataset.tasks.{task.name}.adapter", task.name
            content = known.get(name) or adapter_identity(task.adapter, where)
            found[name] = Given(model=model, task=task, source=task.adapter, content=content)
    if found and config["diagnostics"]["statistics"]:
        raise ValueError(f"{where}: how a given adapter started is not known: diagnostics=none")
    for task in tasks:
        first = arm.tuning.of(task.name).intermediate
        if task.name not in found and first in found:
            raise ValueError(f"{task.name} starts from {first}, which is given: train it")
    return found


def _only(suite: Mapping[str, Any]) -> list[str]:
    """The names of the tasks that are taken."""
    only, names = suite.get("only"), list(suite["tasks"])
    if only is None:
        return names
    only = list(only) if isinstance(only, (list, tuple)) else [only]
    if unknown := [name for name in only if name not in names]:
        raise ValueError(f"dataset.only names {unknown}; {suite['name']} has: {', '.join(names)}")
    if not only or len(set(only)) < len(only):
        raise ValueError(f"dataset.only={only}: name every task once; null takes all")
    return only
