"""The family of depth-wise integration: a network of the experts' layers, one after the other.

Su and Geiping, "Fine, I'll merge it myself", 2025, arXiv 2502.04030; code
Guinan-Su/auto-merge-llm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations

import torch

from osrm_exp.depth import Layer, Stacked
from osrm_exp.lora import Update
from osrm_exp.search.coefficients import layers_of
from osrm_exp.search.family import Choice, Outcome, Scene, Settings, Tensors

MOST = 5  # tasks: 120 orders a layer
BASE = -1  # in the place of a task: a layer without an update


class Integration:
    """For every layer which experts' versions of it come, in which order, and a scale behind them.

    A layer of no expert is the base model's. Where it is there for several, the result is deeper
    than the checkpoint.

    Args:
        scene: the adapters.
        allow_depth_change: whether that is wanted.

    Raises:
        ValueError: it is not; more tasks than can be ordered; layers that are no one list.
    """

    limits, penalty = None, 0.0
    conditions: Mapping[str, tuple] = {}

    def __init__(self, scene: Scene, /, *, allow_depth_change: bool) -> None:
        if not allow_depth_change:
            raise ValueError(
                "a model of other layers than the checkpoint's is made, which no adapter holds: "
                "merge.search.family.allow_depth_change=true says that it is wanted"
            )
        if len(scene.tasks) > MOST:
            raise ValueError(
                f"{len(scene.tasks)} tasks have too many orders for a search: take a suite of "
                f"{MOST} or fewer (dataset.only)"
            )
        self.scene, self.path = scene, _path(scene)
        self.orders = tuple(map(" ".join, permutations(scene.tasks)))
        self.layers = [f"layer{n}" for n in range(len(scene.bench.net.get_submodule(self.path)))]
        self.space: dict[str, tuple] = {}
        for layer in self.layers:
            self.space |= {f"{layer}/{task}": (False, True) for task in scene.tasks}
            self.space |= {f"{layer}/order": self.orders, f"{layer}/scale": (0.0, 2.0)}
        self.starts = [self._alone(task) for task in scene.tasks]
        self.start = self.read(self.starts[0])

    def _alone(self, task: str) -> Choice:
        """The point at which the network is one expert."""
        return {
            name: {"order": self.orders[0], "scale": 1.0}.get(of := name.partition("/")[2])
            or of == task
            for name in self.space
        }

    def read(self, point: Choice) -> Tensors:
        """Of every new layer its source, its task and its scale: `[layer, 3]`."""
        rows = [
            row for number, layer in enumerate(self.layers)
            for row in self._versions(point, number, layer)
        ]  # fmt: skip
        return {"layers": torch.tensor(rows, dtype=torch.float64)}

    def _versions(self, point: Choice, number: int, layer: str) -> list[list[float]]:
        order = point[f"{layer}/order"].split()
        tasks = [self.scene.tasks.index(one) for one in order if point[f"{layer}/{one}"]] or [BASE]
        scales = [1.0] * (len(tasks) - 1) + [point[f"{layer}/scale"]]
        return [[number, task, scale] for task, scale in zip(tasks, scales)]

    def outcome(self, settings: Settings, tensors: Tensors) -> Outcome:  # noqa: ARG002
        rows = tensors["layers"].tolist()
        layers = tuple(Layer(int(source), scale) for source, _, scale in rows)
        updates = {
            module: update
            for place, (source, task, _) in enumerate(rows)
            for module, update in self._moved(int(source), int(task), place)
        }
        return Outcome(updates, stacked=Stacked(self.path, layers))

    def _moved(self, source: int, task: int, place: int) -> Iterator[tuple[str, Update]]:
        """A layer's updates of one task, by the names that they have at another place."""
        before = f"{self.path}.{source}."
        for module, stack in self.scene.updates.items():
            if module.startswith(before) and task != BASE:
                yield f"{self.path}.{place}.{module.removeprefix(before)}", stack.task(task)


def _path(scene: Scene) -> str:
    """Where the network has its list of layers.

    Raises:
        ValueError: it has several, or adapters outside it.
    """
    found = {layer.rpartition(".")[0].rpartition(".")[0] for layer in layers_of([*scene.updates])}
    if len(found) > 1 or "" in found:
        raise ValueError(
            f"the adapted layers lie in {', '.join(sorted(found)) or 'no list'}, and a depth can "
            "be changed of one list alone: take a model without a decoder beside its encoder"
        )
    return found.pop()
