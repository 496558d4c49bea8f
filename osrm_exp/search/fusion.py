"""The family of layer-wise fusion: every group of layers is merged by a method of its own.

Su and Geiping, "Fine, I'll merge it myself", 2025, arXiv 2502.04030; code
Guinan-Su/auto-merge-llm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from osrm_exp.lora import LowRank, Update, stack
from osrm_exp.merging import slerp, task_arithmetic, ties
from osrm_exp.merging.geometry import combine
from osrm_exp.search.coefficients import grouped
from osrm_exp.search.family import Choice, Outcome, Scene, Settings, Tensors

METHODS = ("linear", "task_arithmetic", "ties", "slerp")
WHOLE = (0.0, 1.0)
PARALLEL = 0.9995  # cosine from which on slerp takes the straight line
Place = tuple[str, str]  # a group of layers, a component in it


class Fusion:
    """A method for every group of layers, with numbers of its own for every component in it.

    A component is what modules of different layers have in common, the last part of their names.
    Only the numbers of the chosen method are there.

    Args:
        scene: the adapters.
        groups: of consecutive layers.

    Raises:
        ValueError: more groups than layers, one task alone, or updates that are no factors.
    """

    limits, penalty = None, 0.0

    def __init__(self, scene: Scene, /, *, groups: PositiveInt) -> None:
        if len(scene.tasks) < 2:
            raise ValueError(
                f"a fusion chooses how tasks are merged, and {scene.tasks[0]} is the only one: "
                "take a suite of two or more (dataset.only)"
            )
        if any(not isinstance(stack, LowRank) for stack in scene.updates.values()):
            raise ValueError("a fusion merges adapters as they are: leave search.first out")
        self.scene = scene
        self.places: dict[Place, list[str]] = {}
        for group, modules in grouped(list(scene.updates), groups).items():
            for module in modules:
                component = module.rpartition(".")[2]
                self.places.setdefault((group, component), []).append(module)
        self.space: dict[str, tuple] = {method_of(group): METHODS for group, _ in self.places}
        self.conditions: dict[str, tuple[str, str]] = {}
        for place in self.places:
            for method in METHODS:
                names = self._numbers(place, method)
                self.space |= names
                self.conditions |= dict.fromkeys(names, (method_of(place[0]), method))
        self.starts = [self._alone(task) for task in scene.tasks]
        self.start = self.read(self.starts[0])

    def _numbers(self, place: Place, method: str) -> dict[str, tuple[float, float]]:
        """The ranges of a method's numbers by name."""
        own: dict[str, tuple[float, float]] = {
            "task_arithmetic": {"scaling": WHOLE},
            "ties": {"density": (0.01, 1.0), "scaling": WHOLE},
        }.get(method) or dict.fromkeys(self.scene.tasks, WHOLE)
        return {"/".join((*place, method, name)): range_ for name, range_ in own.items()}

    def _alone(self, task: str) -> Choice:
        """The point at which the merge is one expert."""
        numbers = {
            name: float(name.rpartition("/")[2] == task)
            for place in self.places for name in self._numbers(place, "linear")
        }  # fmt: skip
        return {**{method_of(group): "linear" for group, _ in self.places}, **numbers}

    def read(self, point: Choice) -> Tensors:
        """Of every place `[1 + numbers]`: which method, and its numbers."""
        found = {}
        for place in self.places:
            method = point[method_of(place[0])]
            numbers = [point[name] for name in self._numbers(place, method)]
            first = float(METHODS.index(method))
            found["/".join(place)] = torch.tensor([first, *numbers], dtype=torch.float64)
        return found

    def outcome(self, settings: Settings, tensors: Tensors) -> Outcome:  # noqa: ARG002
        merged: dict[str, Update] = {}
        for place, modules in self.places.items():
            first, *numbers = tensors["/".join(place)].tolist()
            method = METHODS[int(first)]
            if method == "slerp":
                group = [tensors["/".join(one)][1:] for one in self.places if one[0] == place[0]]
                numbers = _of_two(numbers, torch.stack(group).sum(0))
            stacks: Any = {module: self.scene.updates[module] for module in modules}
            merged |= fused(method, stacks, numbers)
        return Outcome({module: merged[module] for module in self.scene.updates})


def method_of(group: str) -> str:
    """The name by which a point gives the method of a group."""
    return f"{group}/method"


def fused(
    method: str, stacks: Mapping[str, LowRank], numbers: Sequence[float]
) -> Mapping[str, Update]:
    """Some modules merged by a method.

    Args:
        method: one of `METHODS`.
        stacks: a stack a module.
        numbers: a weight a task, of which only the shares of the sum count; a scaling; a density
            and a scaling; the places of two tasks and how far it is from the first to the second.
    """
    if method == "linear":
        shares = torch.tensor(numbers, dtype=torch.float64)
        shares = shares / shares.sum().clamp(min=1e-12)
        return {module: combine(one, shares) for module, one in stacks.items()}
    if method == "task_arithmetic":
        return task_arithmetic(stacks, space="delta", scaling=numbers[0])
    if method == "ties":
        density, scaling = numbers
        return ties(
            stacks, space="delta", density=density, scaling=scaling, granularity="tensor",
            counting="mask_rate", total_parameters=None, merge="mean",
        )  # fmt: skip
    *pair, t = numbers
    two = {m: stack([one.task(int(index)) for index in pair]) for m, one in stacks.items()}
    return slerp(two, t=t, dot_threshold=PARALLEL)


def _of_two(own: Sequence[float], totals: Tensor) -> list[float]:
    """The two tasks with the largest totals `[task]`, the first of equals, and the share that the
    second has by the numbers of a component."""
    one, other = sorted(range(len(totals)), key=lambda index: -totals[index].item())[:2]
    share = torch.tensor([own[one], own[other]], dtype=torch.float64).softmax(0)[1].item()
    return [one, other, share]
