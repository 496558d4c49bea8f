"""Overrides as they are typed: made readable, put in order, multiplied out; configs made plain."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

STUDY = "hparams_search="  # proposes cells, and is no part of any
PLACE = re.compile(r"""(?<![^=,:\[{'"])(?:~[\w-]*)?/[^'",\]}]+""")  # of this machine alone
KEPT_BACK = re.compile(r"\(local [0-9a-f]{8}\)")
ELSEWHERE = ("paths.results", "paths.logs")  # where a row lay says nothing about its cell
TOKEN = re.compile(r"\b(?:hf_|ghp_|sk-)\w{8,}")


def points(params: Mapping[str, Any] | None, overrides: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The overrides of every cell, of the sweeper's own parameters and what was typed."""
    running = GlobalHydra.instance().hydra  # which knows the files that a glob(...) names
    parser = OverridesParser.create(running.config_loader if running else None)
    parsed = parser.parse_overrides(
        [*(f"{key}={values}" for key, values in (params or {}).items()), *overrides]
    )
    (found,) = BasicSweeper.split_arguments(parsed, None)
    yield from map(tuple, found)


def readable(override: str) -> str:
    """An override in quotes where Hydra cannot read its value, as a path with umlauts or `=`."""
    key, _, value = override.partition("=")
    if key.startswith("-") or not value or value[0] in "'\"[{(":
        return override
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return f"{key}='" + value.replace("'", r"\'") + "'"
    return override


def public(override: str) -> str:
    """An override as a row keeps it: a place on this machine is a digest, which tells it from
    another and says nothing else, and a token is gone."""

    def digest(place: re.Match[str]) -> str:
        return f"(local {hashlib.sha256(place[0].encode()).hexdigest()[:8]})"

    return TOKEN.sub("(secret)", PLACE.sub(digest, override))


def completed(kept: Sequence[str], added: Sequence[str]) -> list[str]:
    """A row's overrides and those that are added, which say what was kept back.

    Raises:
        ValueError: they do not.
    """
    said = {*map(_key, added), *ELSEWHERE}
    back = [one for one in kept if KEPT_BACK.search(one)]
    if lacking := [f"{_key(one)}=…" for one in back if _key(one) not in said]:
        raise ValueError(
            f"rows keep no place of the machine that made them: add {' '.join(lacking)}"
        )
    return [*(one for one in kept if one not in back), *added]


def _key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def unswept(overrides: Sequence[str]) -> list[str]:
    """The overrides that all cells of a sweep share."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [given for given, one in zip(overrides, parsed) if not one.is_sweep_override()]


def ordered(overrides: Sequence[str]) -> list[str]:
    """The overrides with a scale behind all else that is added to the defaults.

    Of two files that set a key Hydra takes the later one, so a scale typed before its experiment
    would be overruled by it.

    Raises:
        ValueError: several scales or experiments, whose files say what is swept.
    """
    added = [one for one in overrides if one.startswith("+")]
    for one in added:
        key, _, value = one.lstrip("+").partition("=")
        if key in ("experiment", "scale") and "," in value:
            raise ValueError(f"{one}: one {key} a command, its file says what is swept")
    slots = iter(sorted(added, key=lambda one: one.lstrip("+").startswith("scale=")))
    return [next(slots) if one.startswith("+") else one for one in overrides]


def plain(config: Any) -> dict[str, Any]:
    """A mapping of OmegaConf's, resolved, as everything behind the door takes it."""
    found: Any = OmegaConf.to_container(config, resolve=True)
    return found
