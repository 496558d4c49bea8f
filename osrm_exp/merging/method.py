"""A merge config as something to call: what is the function's, what is the pipeline's."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hydra.utils import get_method

from osrm_exp.lora import LowRank, Update
from osrm_exp.spec import check_options


@dataclass(frozen=True)
class Method:
    """A merge method with its settings, read from `conf/merge/<name>.yaml`.

    `statistics` is for the pipeline, `grid` for the search, `neutral` and `laws` for the tests,
    `page` for `docs/methods.md`; every other key is a hyperparameter. `space` is a label where the
    function knows only one.
    """

    function: Any
    settings: dict[str, Any]
    statistics: dict[str, dict[str, Any]]
    grid: dict[str, list[Any]]
    neutral: dict[str, Any] | None
    laws: tuple[str, ...]
    space: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Method:
        """Reads and checks a plain config.

        Raises:
            ValueError: a key that the function does not take, or one that it misses.
        """
        config = dict(config)
        config.pop("_partial_", None)
        function = get_method(config.pop("_target_"))
        statistics = config.pop("statistics", None) or {}
        grid, neutral = config.pop("grid", None) or {}, config.pop("neutral", None)
        laws = tuple(config.pop("laws", None) or ())
        config.pop("page", None)
        space = config.get("space", "delta")
        if "space" not in inspect.signature(function).parameters:
            config.pop("space", None)
        method = cls(function, config, statistics, grid, neutral, laws, space)
        for candidate in (config, grid, neutral or {}):
            method._check({**config, **candidate})
        return method

    def with_(self, **settings: Any) -> Method:
        """The same method at other settings."""
        self._check({**self.settings, **settings})
        return replace(self, settings={**self.settings, **settings})

    def __call__(self, updates: Mapping[str, LowRank], **statistics: Any) -> Mapping[str, Update]:
        return self.function(updates, **statistics, **self.settings)

    def _check(self, settings: Mapping[str, Any]) -> None:
        what = f"merge {self.function.__name__}"
        check_options(what, self.function, settings, 1, self.statistics)
