"""The family of WEMoE: a small network that weighs the experts anew for every input.

Tang et al., ICML 2024, arXiv 2402.00433; port tanganke/fusion_bench.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from osrm_exp.lora import Gated, LowRank, Update
from osrm_exp.search.coefficients import layers_of
from osrm_exp.search.family import Choice, Outcome, Scene, Settings, Tensors

PARTS = ("w1", "b1", "w2", "b2")


class Gates:
    """Two layers `[width, width]`, `[task, width]` that the adapted modules of a layer share.

    Modules of a layer share a gate where they are equally wide, as q, k and v are, which see the
    same inputs. Every token is weighed on its own; weights start near `start` for all tasks, which
    is task arithmetic.

    Args:
        scene: the adapters.
        start: last bias: the weight of every task before anything is learned.
        spread: standard deviation of the first weights.
    """

    limits, penalty = None, 0.0
    starts: Sequence[Choice] = ({},)
    space: Mapping[str, tuple] = {}
    conditions: Mapping[str, tuple] = {}

    def __init__(self, scene: Scene, /, *, start: float, spread: float) -> None:
        self.scene = scene
        layers = layers_of(list(scene.updates))
        self.gate = {
            module: f"{_layer(module, layers)}{stack.shape[1]}"
            for module, stack in scene.updates.items()
        }
        widths = {self.gate[m]: stack.shape[1] for m, stack in scene.updates.items()}
        generator = torch.Generator().manual_seed(scene.bench.cell.seed)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator) * spread

        self.start: Tensors = {}
        for name, width in widths.items():
            made = (
                drawn(width, width), torch.zeros(width), drawn(len(scene.tasks), width),
                torch.full((len(scene.tasks),), start),
            )  # fmt: skip
            self.start |= {f"{name}.{part}": tensor for part, tensor in zip(PARTS, made)}

    def read(self, point: Choice) -> Tensors:  # noqa: ARG002
        return dict(self.start)

    def outcome(self, settings: Settings, tensors: Tensors) -> Outcome:  # noqa: ARG002
        found: dict[str, Update] = {}
        for module, stack in self.scene.updates.items():
            gate = (tensors[f"{self.gate[module]}.{part}"] for part in PARTS)
            assert isinstance(stack, LowRank)  # nothing goes before gates
            found[module] = Gated(stack, *gate)
        return Outcome(found)


def _layer(module: str, layers: Mapping[str, int]) -> str:
    return next(layer for layer in layers if module.startswith(layer))
