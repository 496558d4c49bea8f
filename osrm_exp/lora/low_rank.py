"""Updates as factors, and the exact algebra on them: no `[out, in]` matrix is formed here unless
the name says `delta` or `rows`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from osrm_exp.lora.linalg import RANK_CUT, SVD, frame, svd_of_product

FAR = 3  # powers of two between a task's split into factors and the others', which a cut can bear
Lost = tuple[float, float]  # norms: of what a truncation cut off, and of all that there was


@dataclass(frozen=True)
class LowRank:
    """A low-rank update, `delta = B @ A`; LoRA's scaling is folded into B.

    A stack of unequal ranks is padded with zeros, and `ranks` keeps the true rank of every task:
    padding is never seen by `unstack` and `total`.
    """

    A: Tensor  # [*, rank, in]
    B: Tensor  # [*, out, rank]
    ranks: tuple[int, ...] = ()  # of a stack: the true rank of every task
    lost: Lost | None = None  # of a truncated update

    def __post_init__(self) -> None:
        if self.A.shape[-2] != self.B.shape[-1] or self.A.shape[:-2] != self.B.shape[:-2]:
            raise ValueError(
                f"A {list(self.A.shape)} and B {list(self.B.shape)} do not share a rank: "
                "expected A [*, rank, in] and B [*, out, rank]"
            )
        if self.A.dim() == 3 and not self.ranks:
            object.__setattr__(self, "ranks", (self.rank,) * len(self.A))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of, each `[*, …]`."""
        return self.A, self.B

    @property
    def rank(self) -> int:
        return self.A.shape[-2]

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)` of the delta."""
        return self.B.shape[-2], self.A.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        return self.A.dtype

    @property
    def device(self) -> torch.device:
        return self.A.device

    @property
    def sharing(self) -> str:
        """Whether all tasks share the update or each has its own: `shared`, `per_task`."""
        return sharing_of(self.A)

    @property
    def single(self) -> LowRank:
        """The update itself.

        Raises:
            ValueError: it is a stack.
        """
        check_single(self.A)
        return self

    @property
    def delta(self) -> Tensor:
        """The dense delta `[*, out, in]`."""
        return self.B @ self.A

    @property
    def spared(self) -> float:
        """The share of its module's product that is spared by a weight that has it within; 0 where
        no weight can."""
        return self.rank * sum(self.shape) / (self.shape[0] * self.shape[1])

    @property
    def error(self) -> float | None:
        """What a truncation cut off, as a share of the norm; None where nothing was truncated."""
        return None if self.lost is None else share(*self.lost)

    def __len__(self) -> int:
        """Number of tasks of a stack."""
        return len(self.ranks)

    def __mul__(self, scale: float) -> LowRank:
        return replace(self, B=self.B * scale)

    def to(self, *args, **kwargs) -> LowRank:
        """`torch.Tensor.to` on both factors."""
        return replace(self, A=self.A.to(*args, **kwargs), B=self.B.to(*args, **kwargs))

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        """`y + B (A x)` in the factors' precision, for a module's input and output."""
        one = self.single
        return (y + (x.to(one.A.dtype) @ one.A.mT) @ one.B.mT).to(y.dtype)

    def task(self, index: int) -> LowRank:
        """What one task of a stack runs with, at its true rank."""
        rank = self.ranks[index]
        return LowRank(self.A[index, :rank], self.B[index, :, :rank], lost=self.lost)

    def unstack(self) -> list[LowRank]:
        """All tasks' updates at their true ranks."""
        return [self.task(index) for index in range(len(self))]

    def total(self) -> LowRank:
        """The sum of all tasks, exact at rank `R`: `[B_1 … B_T] @ [A_1; …; A_T]`."""
        tasks = self.unstack()
        return LowRank(torch.cat([u.A for u in tasks]), torch.cat([u.B for u in tasks], dim=1))

    @property
    def blocks(self) -> list[slice]:
        """Where each task's rank-1 units lie on the `R` axis of `total()`."""
        ends = torch.tensor((0, *self.ranks)).cumsum(0).tolist()
        return [slice(start, end) for start, end in pairwise(ends)]

    def rows(self, part: slice, out: Tensor | None = None) -> Tensor:
        """Some rows of all tasks' deltas `[task, rows, in]`, in a new tensor or in `out`."""
        return torch.bmm(self.B[:, part], self.A, out=out)

    def entries(self, i: Tensor, j: Tensor) -> Tensor:
        """All tasks' entries at the places `(i, j)`, `[task, count]`."""
        pairs = zip(self.B, self.A.mT.contiguous())
        return torch.stack([(B[i] * A[j]).sum(-1) for B, A in pairs])

    def coordinates(self) -> tuple[list[LowRank], Callable[[Tensor], LowRank]]:
        """All tasks in small coordinates, and the way back for what a rule makes of them.

        Factors `[rank_t, q]` and `[p, rank_t]` in the singular bases of the stacked factors at
        their numerical rank, float64; a rule gives numbers `[p, q]`.
        """
        together = self.evened().total()
        (U, left), (V, right) = frame(together.B), frame(together.A.mT)
        tasks = [LowRank(right[:, block].mT, left[:, block]) for block in self.blocks]
        return tasks, lambda core: lifted(U, core, V).to(self.dtype)

    def evened(self) -> LowRank:
        """The same deltas, with A and B split as in the other tasks where they are far from it.

        A task with a tiny B and a huge A is no smaller than others, and must not be cut beside
        them. Powers of two, so nothing is rounded; the update itself where no task is far off.
        """
        a, b = (torch.linalg.matrix_norm(X.double(), keepdim=True) for X in (self.A, self.B))
        exists = (a > 0) & (b > 0)
        if not exists.any():
            return self
        exponent = torch.where(exists, (b / a).log2() / 2, 0).round()
        exponent = torch.where(exists, exponent - exponent[exists].median(), 0)
        if exponent.abs().max() <= FAR:
            return self
        scale = exponent.exp2().to(self.dtype)
        return replace(self, A=self.A * scale, B=self.B / scale)

    def lifted(self, U: Tensor) -> LowRank:
        """`U @ delta`, for `U [wide, out]`."""
        return LowRank(self.A, U @ self.B)

    def without(self, U: Tensor) -> LowRank:
        """The delta less its part in the span of U's orthonormal columns."""
        return LowRank(self.A, self.B - U @ (U.mT @ self.B))

    def svd(self, cut: float = RANK_CUT) -> SVD:
        """SVD of the delta in float64, without null directions."""
        return svd_of_product(self.single.B, self.A, cut)

    def balanced(self, cut: float = RANK_CUT) -> LowRank:
        """The same delta with `B = U sqrt(S)`, `A = sqrt(S) Vh`: canonical, and safe to round."""
        part = self.svd(cut)
        return replace(nearest(part, len(part.S)), lost=self.lost)

    def truncate(self, rank: int) -> LowRank:
        """The nearest update of at most `rank` in Frobenius norm, which knows its `error`."""
        return nearest(self.svd(), rank, self.lost)


def sharing_of(tensor: Tensor) -> str:
    """What a tensor `[*, rows, columns]` is: `shared` by all tasks, or `per_task`."""
    return "per_task" if tensor.dim() == 3 else "shared"


def check_single(tensor: Tensor) -> None:
    """Refuse a stack where one delta is asked for."""
    if sharing_of(tensor) == "per_task":
        raise ValueError(
            "a per-task result gives every task a delta of its own, so no one delta holds it: take "
            "the task that is meant, or a merge method without a task axis"
        )


def share(lost: float, norm: float) -> float:
    """A part of a norm, 0 of nothing."""
    return lost / norm if norm > 0 else 0.0


def nearest(part: SVD, rank: int, before: Lost | None = None) -> LowRank:
    """The leading triplets as balanced factors; `before` is what was lost already."""
    norm, rest, root = part.S.norm().item(), part.S[rank:].norm().item(), part.S[:rank].sqrt()
    lost, whole = before or (0.0, norm)
    earlier, now = share(lost, whole), share(rest, norm)
    lost = whole * (earlier**2 + (1 - earlier**2) * now**2) ** 0.5
    return LowRank(root[:, None] * part.Vh[:rank], part.U[:, :rank] * root, lost=(lost, whole))


def stack(updates: Sequence[LowRank]) -> LowRank:
    """Tasks' updates `[rank_t, in]`, `[out, rank_t]` as one stack, zero-padded to the largest rank.

    Raises:
        ValueError: the deltas do not share one shape.
    """
    shapes = {u.shape for u in updates}
    if len(shapes) != 1:
        raise ValueError(f"updates of one module must share one shape (out, in), got {shapes}")
    ranks = tuple(u.rank for u in updates)
    top = max(ranks)
    A = [torch.nn.functional.pad(u.A, (0, 0, 0, top - u.rank)) for u in updates]
    B = [torch.nn.functional.pad(u.B, (0, top - u.rank)) for u in updates]
    lost = [u.lost for u in updates if u.lost]
    return LowRank(torch.stack(A), torch.stack(B), ranks, together(lost))


def lifted(U: Tensor, core: Tensor, V: Tensor) -> LowRank:
    """`U @ core @ V.T` for a core `[*, p, q]`, an update of rank `min(p, q)`."""
    if core.shape[-2] <= core.shape[-1]:
        return LowRank(core @ V.mT, U.expand(*core.shape[:-2], *U.shape))
    return LowRank(V.mT.expand(*core.shape[:-2], *V.mT.shape), U @ core)


def together(lost: Sequence[Lost]) -> Lost | None:
    """What several truncations lost, None where there was none."""
    if not lost:
        return None
    part, whole = (sum(norm**2 for norm in norms) ** 0.5 for norms in zip(*lost))
    return part, whole
