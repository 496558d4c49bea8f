"""The family of free coefficients: numbers that scale updates before any rule combines them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from osrm_exp.lora import Dense, LowRank
from osrm_exp.search.family import Choice, Outcome, Scene, Settings, Tensors

NUMBER = re.compile(r"(?:.*?\.)?(\d+)\.")  # of a module's layer, the outermost one


class Coefficients:
    """A merge of `c_t delta_t`, with `c` free by group of modules and by task.

    Args:
        scene: the adapters and the rule.
        groups: `module` gives every module coefficients of its own, a number makes so many groups
            of consecutive layers (1: all alike), null frees none, so that the merge's own settings
            are all there is.
        per_task: one a task, or one that all tasks share.
        grain: what a coefficient scales: an update, a rank-1 part of it, or an entry, which makes
            the stacks dense.
        start: where all of them start; null is 1 / T.
        values: what a grid tries; the ends are the range of all other optimisers, and null is none.
        penalty: added to an objective, times their mean magnitude.
        weights: they are handed to the merge's option of this name in the place of scaling updates;
            one group alone.
        normalize: magnitudes divided by their sum over tasks.

    Raises:
        ValueError: more groups than layers, or a `weights` that does not go with the rest.
    """

    conditions: Mapping[str, tuple] = {}

    def __init__(
        self,
        scene: Scene,
        /,
        *,
        groups: PositiveInt | Literal["module"] | None,
        per_task: bool,
        grain: Literal["update", "rank", "entry"],
        start: float | None,
        values: list[float] | None,
        penalty: float,
        weights: str | None,
        normalize: bool,
    ) -> None:
        self.scene, self.grain, self.penalty = scene, grain, penalty
        self.weights, self.normalize, self.per_task = weights, normalize, per_task
        self.limits = (min(values), max(values)) if values else None
        _check(scene, groups, per_task, grain, weights)
        self.groups = {} if groups is None else grouped(list(scene.updates), groups)
        first = 1 / len(scene.tasks) if start is None else start
        self.start = {
            name: torch.full(self._shape(modules[0]), first)
            for name, modules in self.groups.items()
        }  # fmt: skip
        self.places = self._places() if grain == "update" else {}
        self.space = {place: tuple(values or ()) for place in self.places}
        self.starts = [{n: self.start[group][c].item() for n, (group, c) in self.places.items()}]

    def _places(self) -> dict[str, tuple[str, int]]:
        """Where the number of a group and a task stands, by the name that a point gives it."""
        names = self.scene.tasks if self.per_task else ("all",)
        return {
            task if len(self.groups) == 1 else f"{group}/{task}": (group, column)
            for group in self.groups for column, task in enumerate(names)
        }  # fmt: skip

    def _shape(self, module: str) -> tuple[int, ...]:
        stack = self.scene.updates[module]
        inner = {"update": (), "rank": (stack.rank or 0,), "entry": stack.shape}[self.grain]
        return (len(self.scene.tasks) if self.per_task else 1, *inner)

    def read(self, point: Choice) -> Tensors:
        found = {name: tensor.clone() for name, tensor in self.start.items()}
        for place, (group, column) in self.places.items():
            found[group][column] = point[place]
        return found

    def outcome(self, settings: Settings, tensors: Tensors) -> Outcome:
        shares = {name: self._normal(tensor) for name, tensor in tensors.items()}
        if self.weights:
            (one,) = shares.values()
            return Outcome(
                self.scene.merge(self.scene.updates, {**settings, self.weights: one.tolist()})
            )
        stacks = dict(self.scene.updates)
        for name, modules in self.groups.items():
            for module in modules:
                stacks[module] = scaled(stacks[module], shares[name])
        return Outcome(self.scene.merge(stacks, settings))

    def _normal(self, tensor: Tensor) -> Tensor:
        if not self.normalize:
            return tensor
        magnitude = tensor.abs()
        return magnitude / magnitude.sum(0, keepdim=True).clamp(min=1e-12)


def _check(
    scene: Scene, groups: int | str | None, per_task: bool, grain: str, weights: str | None
) -> None:
    if weights and (groups != 1 or not per_task or grain != "update"):
        raise ValueError(
            f"weights={weights} gives the merge one number a task: take groups=1, "
            "per_task=true, grain=update"
        )
    if per_task and groups is not None and len(scene.tasks) < 2:
        raise ValueError(
            f"coefficients weigh tasks against each other, and {scene.tasks[0]} is the only "
            "one: take a suite of two or more (dataset.only)"
        )


def scaled(stack: LowRank | Dense, c: Tensor) -> LowRank | Dense:
    """A stack with `c [task]`, `[task, rank]` or `[task, out, in]` on its updates."""
    if c.dim() == 3 or isinstance(stack, Dense):
        delta = stack.delta
        return Dense(delta * c.to(delta).reshape(*c.shape, *[1] * (3 - c.dim())))
    B = stack.B
    return LowRank(stack.A, B * c.to(B).reshape(len(c), 1, -1), stack.ranks)


def grouped(modules: Sequence[str], groups: int | str) -> dict[str, list[str]]:
    """Modules by name of their group; those outside every numbered layer go with the first.

    Raises:
        ValueError: more groups than layers.
    """
    if groups == "module":
        return {module: [module] for module in modules}
    layers, count = layers_of(modules), int(groups)
    if count > len(layers):
        raise ValueError(f"groups={count} of {len(layers)} layers: choose at most {len(layers)}")
    found: dict[str, list[str]] = {}
    for module in modules:
        place = layers[_layer(module)] * count // len(layers)
        found.setdefault(f"group{place}" if count > 1 else "all", []).append(module)
    return found


def layers_of(modules: Sequence[str]) -> dict[str, int]:
    """The layers that modules lie in, numbered in the order in which they come."""
    return {layer: place for place, layer in enumerate(dict.fromkeys(map(_layer, modules)))}


def _layer(module: str) -> str:
    """What precedes and includes the number of a module's layer."""
    match = NUMBER.match(module)
    return match[0] if match else ""
