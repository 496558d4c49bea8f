"""Configs from outside the package: folders laid out as `conf/`, named in `OSRM_EXP_CONF`.

A name that the package has is the package's. Workers inherit the variable, rows remember it.
"""

from __future__ import annotations

import argparse
import importlib.resources
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from osrm_exp import CONF

VARIABLE = "OSRM_EXP_CONF"  # folders or `pkg://package.conf`, with commas between them
KEY = "hydra.searchpath"


def named() -> list[str]:
    """What the variable names, as it was typed."""
    return [one.strip() for one in os.environ.get(VARIABLE, "").split(",") if one.strip()]


def name(more: Iterable[str]) -> None:
    """Adds to the variable."""
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*named(), *more]))


def override() -> list[str]:
    """The variable as Hydra's own override; none where it is empty.

    Raises:
        ValueError: see `folders`.
    """
    found = [f"'file://{folder.absolute()}'" for folder in folders()[1:]]
    return [f"{KEY}=[{','.join(found)}]"] if found else []


def typed(arguments: Sequence[str]) -> list[str]:
    """A command line whose `--config-dir` and `hydra.searchpath` went into the variable."""
    # late: whoever merges from Python has no command line, and need not wait for Hydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", action="append", default=[])
    given, rest = parser.parse_known_args(arguments)
    name(given.config_dir)
    paths = [one for one in rest if one.lstrip("+").startswith(f"{KEY}=")]
    for parsed in OverridesParser.create().parse_overrides(paths):
        found = parsed.value()
        found = found if isinstance(found, list) else [found]
        name(str(one).removeprefix("file://") for one in found)
    return [one for one in rest if one not in paths]


def folders() -> list[Path]:
    """Where configs lie, the package's own first.

    Raises:
        ValueError: a folder or a package that is not there.
    """
    return [CONF, *map(_folder, named())]


def file(group: str, chosen: str) -> Path | None:
    """The file of a choice, `group/chosen.yaml`; None where there is none."""
    return files(group).get(chosen)


def files(group: str) -> dict[str, Path]:
    """The files of a group by name."""
    places = [(folder / group).glob("*.yaml") for folder in reversed(folders())]
    return {path.stem: path for found in places for path in sorted(found)}


def _folder(one: str) -> Path:
    try:
        package = one.removeprefix("pkg://")
        found = Path(str(importlib.resources.files(package))) if package != one else Path(one)
    except ModuleNotFoundError:
        raise ValueError(f"{VARIABLE} names {one}: no such package is installed") from None
    if not found.expanduser().is_dir():
        raise ValueError(f"{VARIABLE} (--config-dir, {KEY}) names {one}, which is no folder")
    return found.expanduser()
