"""The family of reinforced merging: every layer takes one of what there is for it.

Han et al., 2025, arXiv 2503.21272; code WuDiHJQ/Reinforced-Model-Merging.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from osrm_exp.lora import Update
from osrm_exp.search.coefficients import grouped, layers_of
from osrm_exp.search.family import Choice, Outcome, Scene, Settings, Tensors

MERGED, SKIP = "merged", "skip"


class Candidates:
    """For every layer a task's own update, what the merge makes of all, or none (`skip`).

    The merge is computed once; a candidate points at its modules.

    Args:
        scene: the adapters and the rule.
    """

    limits, penalty = None, 0.0
    conditions: Mapping[str, tuple] = {}

    def __init__(self, scene: Scene, /) -> None:
        self.scene, self._kept = scene, dict[str, Mapping[str, Update]]()
        modules = list(scene.updates)
        self.groups = grouped(modules, len(layers_of(modules)))
        self.values = (*scene.tasks, MERGED, SKIP)
        self.space = dict.fromkeys(self.groups, self.values)
        self.starts = [dict.fromkeys(self.groups, one) for one in (MERGED, *scene.tasks)]
        self.start = self.read(self.starts[0])

    def read(self, point: Choice) -> Tensors:
        """Of every layer the place of its candidate."""
        return {group: torch.tensor(self.values.index(point[group])) for group in self.groups}

    def outcome(self, settings: Settings, tensors: Tensors) -> Outcome:
        found: dict[str, Update] = {}
        for group, modules in self.groups.items():
            value = self.values[int(tensors[group])]
            for module in modules:
                found[module] = self._of(module, value, settings)
        return Outcome({module: found[module] for module in self.scene.updates})

    def _of(self, module: str, value: str, settings: Settings) -> Update:
        stack = self.scene.updates[module]
        if value == MERGED:
            return self._merged(settings)[module]
        if value == SKIP:
            return stack.task(0) * 0.0
        return stack.task(self.scene.tasks.index(value))

    def _merged(self, settings: Settings) -> Mapping[str, Update]:
        """The merge at some settings.

        Raises:
            ValueError: it has no one result for all tasks.
        """
        if (key := repr(settings)) not in self._kept:
            merged = dict(self.scene.merge(self.scene.updates, settings))
            if any(update.sharing != "shared" for update in merged.values()):
                raise ValueError(
                    "a layer takes one candidate for all tasks, and this merge gives every task "
                    "its own or routes: take another merge"
                )
            self._kept[key] = merged
        return self._kept[key]
