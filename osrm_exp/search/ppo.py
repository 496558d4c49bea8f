"""Proximal policy optimisation: an agent learns to walk through a space."""

from __future__ import annotations

import warnings
from typing import Annotated, Any

from lightning.pytorch.utilities.seed import isolate_rng
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from osrm_exp.search.problem import Found, Point, Problem
from osrm_exp.search.ranges import extra, moves
from osrm_exp.search.walk import CAP, Walk, environment

TOGETHER = 4  # walks between two updates of the policy
NETWORK = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}}  # of tanh, by the library's default


def ppo(
    problem: Problem, /, *, episodes: PositiveInt, parts: PositiveInt,
    smoothing: Annotated[float, Field(ge=0, le=1)], lr: PositiveFloat, samples: NonNegativeInt,
    back: bool, observe_cursor: bool,
) -> Found:  # fmt: skip
    """The best of the points that were scored on all rows: those that the learned policy walks to.

    Schulman et al., 2017, arXiv 1707.06347, by stable-baselines3, as Han et al., 2025, arXiv
    2503.21272 use it. A search that goes on after a kill learns again from the scores it knows.

    Args:
        problem: what `space` lists is chosen from.
        episodes: walks to learn from.
        parts: into which every task's rows are dealt, at most as many as a task has rows; a walk
            is rewarded by one of them. 1: all rows, and every walk is a candidate.
        smoothing: see `Walk`.
        lr: of Adam, for both networks.
        samples: walks drawn from the policy at the end, beside the one it likes best.
        back: whether a walk may step back.
        observe_cursor: see `Walk`.

    Raises:
        ValueError: nothing to choose, or lists of different lengths.
    """
    library, gymnasium = extra("stable_baselines3"), extra("gymnasium")
    _check(problem)
    walk = Walk(
        problem, walks=episodes, parts=parts, smoothing=smoothing, back=back,
        observe_cursor=observe_cursor,
    )  # fmt: skip
    most = library.common.callbacks.StopTrainingOnMaxEpisodes(episodes)
    together, names = min(episodes, TOGETHER), len(problem.space)
    steps = max(together * names, 2)  # the library wants two
    with isolate_rng(include_cuda=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a batch that is not full
        agent = library.PPO(
            "MlpPolicy", environment(gymnasium, walk), n_steps=steps, batch_size=steps, n_epochs=40,
            learning_rate=lr, gamma=0.99, gae_lambda=1.0, clip_range=0.2, ent_coef=1e-4,
            vf_coef=0.5, policy_kwargs=NETWORK, device="cpu", seed=problem.seed % 2**32,
        )  # fmt: skip
        agent.learn(total_timesteps=episodes * CAP * names, callback=most)
        walked = [_walked(agent, walk, greedy=not number) for number in range(1 + samples)]
    for point in [one for one in walked if one] or problem.starts:
        problem.score(point)
    return problem.chosen(problem.memory.best()["point"])


def _check(problem: Problem) -> None:
    moves(problem, "ppo")
    lengths = {name: len(values) for name, values in problem.space.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(
            f"ppo picks from as many values at every step, and {told}: take search=optuna"
        )


def _walked(agent: Any, walk: Walk, greedy: bool) -> Point | None:
    """Where the policy walks to, nothing rewarded; None where it never arrives."""
    seen = walk.reset()
    for _ in range(CAP * len(walk.names)):
        action, _ = agent.predict(seen, deterministic=greedy)
        seen = walk.moved(int(action))
        if walk.cursor < 0:
            return None
        if walk.cursor == len(walk.names):
            return walk.point
    return None
