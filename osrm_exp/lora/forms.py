"""The other forms of an update: numbers, and experts that the input chooses from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NoReturn, Self

import torch
from torch import Tensor

from osrm_exp.lora.linalg import RANK_CUT, SVD, svd
from osrm_exp.lora.low_rank import Lost, LowRank, check_single, nearest, sharing_of


@dataclass(frozen=True)
class Dense:
    """An update as numbers `[*, out, in]`: what rules on single entries give."""

    delta: Tensor

    rank = error = lost = None
    spared = 1.0

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of, each `[*, …]`."""
        return (self.delta,)

    @property
    def shape(self) -> tuple[int, int]:
        return self.delta.shape[-2], self.delta.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        return self.delta.dtype

    @property
    def device(self) -> torch.device:
        return self.delta.device

    @property
    def sharing(self) -> str:
        return sharing_of(self.delta)

    @property
    def single(self) -> Dense:
        check_single(self.delta)
        return self

    def __len__(self) -> int:
        return len(self.delta) if self.delta.dim() == 3 else 0

    def __mul__(self, scale: float) -> Dense:
        return Dense(self.delta * scale)

    def to(self, *args, **kwargs) -> Dense:
        return Dense(self.delta.to(*args, **kwargs))

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        return (y + x.to(self.dtype) @ self.single.delta.mT).to(y.dtype)

    def task(self, index: int) -> Dense:
        return Dense(self.delta[index])

    def unstack(self) -> list[Dense]:
        return [Dense(delta) for delta in self.delta]

    def total(self) -> Dense:
        return Dense(self.delta.sum(0))

    def rows(self, part: slice, out: Tensor | None = None) -> Tensor:
        rows = self.delta[:, part]
        return rows.clone() if out is None else out.copy_(rows)

    def entries(self, i: Tensor, j: Tensor) -> Tensor:
        return self.delta[:, i, j]

    def coordinates(self) -> tuple[list[Dense], Callable[[Tensor], Dense]]:
        return self.to(torch.float64).unstack(), lambda merged: Dense(merged.to(self.dtype))

    def lifted(self, U: Tensor) -> LowRank:
        return LowRank(self.delta, U.expand(*self.delta.shape[:-2], *U.shape))

    def without(self, U: Tensor) -> Dense:
        return Dense(self.delta - U @ (U.mT @ self.delta))

    def svd(self, cut: float = RANK_CUT) -> SVD:
        return svd(self.single.delta, cut)

    def truncate(self, rank: int) -> LowRank:
        return nearest(self.svd(), rank)


class Experts:
    """What all forms share whose experts every input chooses from."""

    experts: LowRank  # [task]
    sharing = "routed"
    spared = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        return self.experts.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.experts.dtype

    @property
    def rank(self) -> int:
        """Of one expert."""
        return self.experts.rank

    @property
    def error(self) -> float | None:
        return self.experts.error

    @property
    def lost(self) -> Lost | None:
        return self.experts.lost

    @property
    def single(self) -> NoReturn:
        raise ValueError(
            "a routed result chooses among its experts for every input, so no one delta holds it: "
            "evaluate it as it is, or take a merge method that does not route"
        )

    def task(self, _: int) -> Self:
        """The update itself: it looks at the input, not at the task."""
        return self

    def weights(self, x: Tensor) -> Tensor:
        """`p [..., task]` of inputs `[..., in]`."""
        raise NotImplementedError

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        x = x.to(self.dtype)
        hidden = torch.einsum("tri,...i->...tr", self.experts.A, x) * self.weights(x)[..., None]
        return (y + torch.einsum("tor,...tr->...o", self.experts.B, hidden)).to(y.dtype)


@dataclass(frozen=True)
class Routed(Experts):
    """Experts of which every input chooses some: `sum_t p_t(x) delta_t x`, shared by all tasks.

    `p` is the softmax of `|gate_t x|` over the experts, of which the `top` largest are kept and
    scaled to sum to 1.
    """

    experts: LowRank  # [task]
    gate: Tensor  # [task, k, in]
    top: int

    def __mul__(self, scale: float) -> Routed:
        return replace(self, experts=self.experts * scale)

    def to(self, *args, **kwargs) -> Routed:
        return Routed(self.experts.to(*args, **kwargs), self.gate.to(*args, **kwargs), self.top)

    def weights(self, x: Tensor) -> Tensor:
        scores = torch.einsum("tki,...i->...tk", self.gate, x).norm(dim=-1)
        shares, chosen = scores.softmax(-1).topk(self.top)
        kept = shares / shares.sum(-1, keepdim=True)
        return torch.zeros_like(scores).scatter(-1, chosen, kept)


@dataclass(frozen=True)
class Gated(Experts):
    """Experts that a small network weighs anew for every input: `w2 relu(w1 x + b1) + b2`."""

    experts: LowRank  # [task]
    w1: Tensor  # [width, in]
    b1: Tensor  # [width]
    w2: Tensor  # [task, width]
    b2: Tensor  # [task]

    def __mul__(self, scale: float) -> Gated:
        return replace(self, experts=self.experts * scale)

    def to(self, *args, **kwargs) -> Gated:
        gate = (part.to(*args, **kwargs) for part in (self.w1, self.b1, self.w2, self.b2))
        return Gated(self.experts.to(*args, **kwargs), *gate)

    def weights(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.w1.mT + self.b1) @ self.w2.mT + self.b2


Update = LowRank | Dense | Routed | Gated
