"""The shape of a composed configuration, before its groups are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from pydantic import Field, PositiveInt

from osrm_exp.record import Record, build
from osrm_exp.store.names import file_name


class Paths(Record):
    """Where things lie."""

    store: str
    results: str
    logs: str


class Trainer(Record):
    """Where fine-tuning and scoring run. It changes no number, so it is in no digest."""

    accelerator: Literal["cpu", "gpu"]
    devices: PositiveInt = 1


def gpus(accelerator: str, devices: int) -> int | None:
    """How many GPUs a cell uses, for a launcher's config."""
    return devices if accelerator == "gpu" else None


OmegaConf.register_new_resolver("gpus", gpus, replace=True)


class Suite(Record):
    """What a suite says of itself; the rest of its keys are those of its tasks."""

    name: str
    tasks: Annotated[dict[str, dict[str, Any] | None], Field(min_length=1)]
    only: Any = None


class Names(Record):
    """Which file of a group was chosen."""

    init: str
    merge: str


class Diagnosis(Record):
    """Statistics that tell what adapters do to each other's data."""

    statistics: dict[str, Any] | None


class Config(Record):
    """The composed configuration, its groups unread; `conf/config.yaml` explains the keys."""

    study: str
    note: str | None
    model: dict[str, Any]
    dataset: dict[str, Any]
    tuning: dict[str, Any]
    init: dict[str, Any]
    merge: dict[str, Any]
    search: dict[str, Any]
    protocol: dict[str, Any]
    diagnostics: dict[str, Any]
    trainer: dict[str, Any]
    logger: dict[str, Any]
    paths: dict[str, Any]
    heads: str | None
    rank: PositiveInt | None
    optimized: Any
    seed: int
    names: dict[str, str]
    overrides: list[str]


def check_groups(config: Mapping[str, Any]) -> None:
    """Whether every group is there and no key of its own is unknown.

    Raises:
        ValueError: see `record.build`; also a name that could leave its folder, or a function that
            was named on the command line.
    """
    build(Config, config, "")
    _check_study(config["study"])
    build(Paths, config["paths"], "paths")
    build(Trainer, config["trainer"], "trainer")
    build(Names, config["names"], "names")
    for group, name in config["names"].items():
        name_of(name, f"names.{group}")  # a logger's folder bears them
    build(Diagnosis, config["diagnostics"], "diagnostics")
    own = {key: one for key, one in config["dataset"].items() if key in Suite.model_fields}
    build(Suite, own, "dataset")
    if typed := [one for one in config["overrides"] if "_target_" in one]:
        raise ValueError(
            f"{typed[0]}: functions are named in config files, never on a command line"
        )


def _check_study(study: str) -> None:
    """Whether a study can name a folder, which may lie in others."""
    try:
        for part in study.split("/"):
            file_name(part)
    except ValueError:
        name_of(study, "study")  # says so of the whole


def name_of(name: str, where: str) -> str:
    """A name that a folder is called by; see `file_name`."""
    try:
        return file_name(name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
