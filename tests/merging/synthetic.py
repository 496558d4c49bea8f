"""Random adapters, and statistics to go with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor

from osrm_exp.lora import LowRank, stack
from osrm_exp.spec import Merge

SHAPES = {"layer0.q": (9, 8), "layer1.v": (7, 10)}  # (out, in)


def adapters(
    ranks: Sequence[int] = (2, 2, 2),
    seed: int = 0,
    shapes: Mapping[str, tuple[int, int]] = SHAPES,
    dtype: torch.dtype = torch.float64,
) -> dict[str, LowRank]:
    """Random adapters with a part that all tasks share, `ranks` one a task."""
    g = torch.Generator().manual_seed(seed)

    def factor(rank: int, width: int) -> Tensor:
        own, common = (torch.randn(rank, width, generator=g, dtype=dtype) for _ in range(2))
        return own + common.sum(0) / 2

    return {
        module: stack([LowRank(factor(r, n), factor(r, m).mT / 3) for r in ranks])
        for module, (m, n) in shapes.items()
    }


def changed(
    updates: Mapping[str, LowRank], change: Callable[[int, LowRank], LowRank]
) -> dict[str, LowRank]:
    """The same stacks with `change(task, update)` for every task's update."""
    return {
        module: stack([change(t, u) for t, u in enumerate(update.unstack())])
        for module, update in updates.items()
    }


def orthogonal(
    ranks: Sequence[int] = (2, 1, 3), shape: tuple[int, int] = (9, 8)
) -> dict[str, LowRank]:
    """Adapters whose row spaces and column spaces are orthogonal to each other."""
    g = torch.Generator().manual_seed(0)
    m, n = shape
    Q_B, Q_A = (
        torch.linalg.qr(torch.randn(w, w, generator=g, dtype=torch.float64)).Q for w in (m, n)
    )
    tasks, start = [], 0
    for rank in ranks:
        part = slice(start, start + rank)
        mixed = torch.randn(rank, rank, generator=g, dtype=torch.float64)
        tasks.append(LowRank(Q_A[part], Q_B[:, part] @ mixed))
        start += rank
    return {"w": stack(tasks)}


class Prefix:
    """Grams of RegMean++, which do not depend on what has been merged."""

    def __init__(self, grams: Mapping[str, Tensor]) -> None:
        self.grams, self.blocks = grams, [[module] for module in grams]

    def __call__(self, merged, modules):
        return {module: self.grams[module] for module in modules}


def statistics(method: Merge, updates: Mapping[str, LowRank], tasks: int) -> dict:
    """What a method asks for, as random data of the right kind, task axis first."""
    g = torch.Generator().manual_seed(1)

    def moment(width: int) -> Tensor:
        X = torch.randn(tasks, 3 * width, width, generator=g, dtype=torch.float64)
        return X.mT @ X / X.shape[1]

    def positive(*shape: int) -> Tensor:
        return torch.rand(tasks, *shape, generator=g, dtype=torch.float64) + 0.1

    inner = {m: moment(u.shape[1]) for m, u in updates.items()}
    made = {  # by the function that a config's `_target_` names, whatever the keyword is
        "gram": lambda: inner,
        "mean": lambda: {m: positive(u.shape[1]) for m, u in updates.items()},
        "MergedPrefix": lambda: Prefix(inner),
        "output_gram": lambda: {m: moment(u.shape[0]) for m, u in updates.items()},
        "fisher": lambda: {m: positive(*u.shape) for m, u in updates.items()},
        "losses": positive,
        "guarded_losses": positive,
    }
    kinds = {k: how.call.target.rpartition(".")[2] for k, how in method.statistics.items()}
    if unknown := set(kinds.values()) - set(made):
        pytest.fail(f"tell tests/merging/synthetic.py how to make up {', '.join(unknown)}")
    return {keyword: made[kind]() for keyword, kind in kinds.items()}
