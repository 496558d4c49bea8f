"""The family of representation surgery: a small module before every task's head.

After any merge, a task's features are corrected by what the module learned of their distance to the
expert's: `z - up relu(down z)`. Yang et al., ICML 2024, arXiv 2402.02705; code
EnnengYang/RepresentationSurgery.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from osrm_exp.search.family import Choice, Outcome, Scene, Settings, Tensors


class Operated(nn.Module):
    """A head module that corrects what it is fed, token by token."""

    def __init__(self, head: nn.Module, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.head, self.down, self.up = head, down, up  # tensors of a search, no parameters

    def forward(self, z: Tensor, *args: Any, **keywords: Any) -> Any:
        down, up = (one.to(z.device, torch.float32) for one in (self.down, self.up))
        z = z.float()
        return self.head(z - torch.relu(z @ down.mT) @ up.mT, *args, **keywords)


class Surgery:
    """A `down [width, d]` and an `up [d, width]` a task; `up` starts at zero: nothing changes.

    Args:
        scene: the adapters, the rule, and the heads.
        width: of the module.
    """

    limits, penalty = None, 0.0
    starts: Sequence[Choice] = ({},)
    space: Mapping[str, tuple] = {}
    conditions: Mapping[str, tuple] = {}

    def __init__(self, scene: Scene, /, *, width: PositiveInt) -> None:
        self.scene = scene
        self.start: Tensors = {}
        if not all(scene.bench.heads):
            raise ValueError(
                "a surgery stands before a task's head, and what a causal model writes has none: "
                "take another merge"
            )
        generator = torch.Generator().manual_seed(scene.bench.cell.seed)
        for task, heads in zip(scene.tasks, scene.bench.heads):
            features = fed(list(heads.values())[-1])
            bound = features**-0.5  # of torch's own linear layers
            down = torch.rand(width, features, generator=generator) * 2 - 1
            self.start |= {f"{task}.down": down * bound, f"{task}.up": torch.zeros(features, width)}

    def read(self, point: Choice) -> Tensors:  # noqa: ARG002
        return dict(self.start)

    def outcome(self, settings: Settings, tensors: Tensors) -> Outcome:
        heads = []
        for task, own in zip(self.scene.tasks, self.scene.bench.heads):
            *before, last = own
            behind = Operated(own[last], tensors[f"{task}.down"], tensors[f"{task}.up"])
            heads.append({**{path: own[path] for path in before}, last: behind.eval()})
        return Outcome(self.scene.merge(self.scene.updates, settings), heads)


def fed(head: nn.Module) -> int:
    """How wide the features are that a head module is fed.

    Raises:
        ValueError: it has no linear layer that says so.
    """
    for module in head.modules():
        if isinstance(module, nn.Linear):
            return module.in_features
    raise ValueError(f"the head {type(head).__name__} has no linear layer whose input is known")
