"""A search whose candidates are judged by a formula; memory and history are production's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

from osrm_exp.search.family import Outcome
from osrm_exp.search.history import History
from osrm_exp.search.memory import Memory
from osrm_exp.search.problem import Problem


class Toy(Problem):
    """`judge(point)` is the score of both its tasks; `made` counts what was really evaluated."""

    def __init__(
        self,
        folder: Path,
        space: dict,
        judge: Callable,
        *,
        seed: int = 1,
        start=None,
        dies: int = 0,
    ) -> None:
        tasks = [SimpleNamespace(name="one"), SimpleNamespace(name="two")]
        self.cell = SimpleNamespace(
            names={"merge": "toy"}, tasks=tasks, merge=SimpleNamespace(grid=space)
        )
        self.family = SimpleNamespace(
            space={}, read=lambda _: {}, penalty=0.0, starts=[{}], conditions={}
        )
        self.members, self.seed, self.judged, self.dies = [0, 1], seed, judge, dies
        self.shares = [1.0, 1.0]
        self.space, self.settings = dict(space), start or {k: v[0] for k, v in space.items()}
        self.history, self.made = History(folder), 0
        self.sizes, self.seen = [9, 12], []
        self.memory = Memory(self.history)

    def _tried(self, point, stop, rows):
        self.seen.append(rows)
        self.made += 1
        if self.made == self.dies:
            raise KeyboardInterrupt
        found: dict[str, float] = {}
        for name in ("one", "two"):
            found[name] = self.judged(point)
            if stop and len(found) < 2 and stop(1, found[name]):
                break
        return found


class Slope(Toy):
    """A quadratic in two tensors, whose minimum is `at`."""

    def __init__(self, folder: Path, at: dict, *, limits=None, dies: int = 0) -> None:
        super().__init__(folder, {}, lambda _: 0.0, dies=dies)
        self.at = at
        start = {name: torch.zeros_like(tensor) for name, tensor in at.items()}
        self.family = SimpleNamespace(
            start=start, limits=limits, outcome=lambda _, tensors: Outcome(tensors)
        )

    def gradient(self, tensors, draw):
        self.made += 1
        if self.made == self.dies:
            raise KeyboardInterrupt
        loss = sum(((tensors[name] - goal) ** 2).sum() for name, goal in self.at.items())
        loss.backward()
        return {"one": loss.item()}
