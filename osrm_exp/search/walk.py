"""A point of a space as a walk: one name after the other gets one of its values.

The environment of reinforced merging, Han et al., 2025, arXiv 2503.21272, where the names are the
layers of a network.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from osrm_exp.search.candidates import SKIP
from osrm_exp.search.problem import Point, Problem

LOST = -0.1  # of stepping back before the first name, where a score of 1 is the best
CAP = 3  # steps of a walk, times the names


class Step(NamedTuple):
    """What a step comes to."""

    seen: np.ndarray
    reward: float
    done: bool
    cut: bool  # it went to and fro for too long


class Walk:
    """Walks over the names of a problem's space, one after the other.

    An action is the place of a value in the list, or behind the last one a step back to the name
    before, which is then chosen anew. A walk that arrives is rewarded by its point's score on a
    part of the rows, the next part for the next walk; a score of another part than the first is
    averaged with the reward before (DAR), the more so the later.

    Args:
        problem: lists of values, all equally long.
        walks: how many there will be.
        parts: into which every task's rows are dealt.
        smoothing: largest weight of the reward before.
        back: whether there is the step back.
        observe_cursor: it sees where it is and what it last chose for every name; else, as
            published, how often it chose what for which, but for a skip, and not where it is.
    """

    def __init__(
        self, problem: Problem, *, walks: int, parts: int, smoothing: float, back: bool,
        observe_cursor: bool,
    ) -> None:  # fmt: skip
        self.problem, self.walks, self.smoothing = problem, walks, smoothing
        self.observe_cursor = observe_cursor
        self.parts = min(parts, *problem.sizes)
        self.names = list(problem.space)
        self.values = len(problem.space[self.names[0]])
        self.actions = self.values + back
        self.walk, self.before = 0, 0.0

    def reset(self) -> np.ndarray:
        """Begins another walk: what is seen of it, `[observation]`."""
        self.walk += 1
        self.point: Point = {}
        self.cursor = self.steps = 0
        self.chosen = np.zeros((len(self.names), self.values), np.float32)
        return self._seen()

    def moved(self, action: int) -> np.ndarray:
        """A step without a reward: what is seen after it."""
        self.steps += 1
        if action == self.values:
            self.cursor -= 1
        else:
            self._choose(self.names[self.cursor], action)
            self.cursor += 1
        return self._seen()

    def step(self, action: int) -> Step:
        seen = self.moved(action)
        if self.cursor < 0:
            return Step(seen, self._smoothed(LOST), True, False)
        if self.cursor == len(self.names):
            return Step(seen, self._smoothed(self._score()), True, False)
        return Step(seen, 0.0, False, self.steps >= CAP * len(self.names))

    def _choose(self, name: str, action: int) -> None:
        self.point[name] = self.problem.space[name][action]
        row = self.chosen[self.cursor]
        if self.observe_cursor:
            row[:] = 0
        elif self.point[name] == SKIP:
            return
        row[action] += 1

    def _seen(self) -> np.ndarray:
        if not self.observe_cursor:
            return self.chosen.flatten()
        place = np.arange(len(self.names) + 1) == max(self.cursor, 0)
        return np.concatenate([self.chosen.flatten(), place.astype(np.float32)])

    def _score(self) -> float:
        place = (self.walk - 1) % self.parts
        rows = slice(place, None, self.parts) if self.parts > 1 else None
        score = self.problem.score(self.point, rows=rows)
        assert score is not None  # nothing stops it
        return score

    def _smoothed(self, reward: float) -> float:
        if (self.walk - 1) % self.parts:
            w = self.smoothing * self.walk / self.walks
            reward = w * self.before + (1 - w) * reward
        self.before = reward
        return reward


def environment(library: Any, walk: Walk) -> Any:
    """A walk as an environment of the library `gymnasium`."""

    class Environment(library.Env):
        action_space = library.spaces.Discrete(walk.actions)
        observation_space = library.spaces.Box(0, np.inf, walk.reset().shape, np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
            super().reset(seed=seed, options=options)
            return walk.reset(), {}

        def step(self, action: Any) -> tuple:
            return *walk.step(int(action)), {}

    walk.walk = 0
    return Environment()
