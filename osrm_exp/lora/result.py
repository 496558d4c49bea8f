"""What a merge method returns, as it is consumed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from osrm_exp.lora.forms import Update
from osrm_exp.lora.low_rank import Lost, share, together


class Result:
    """A merge, computed once, module by module, and described by what came by.

    Iterating gives `(module, update)` and keeps none of them, so that a consumer that drops them
    too holds one module at a time; `dict(result)` is the whole of it. Only afterwards are `form`,
    `error` and the `seconds` that it took those of the whole.

    Args:
        merged: what a merge method returned, lazy or not.
        rank: truncates every module to this rank at most.

    Raises:
        ValueError: a rank that is none.
    """

    def __init__(self, merged: Mapping[str, Update], rank: int | None = None) -> None:
        if rank is not None and (type(rank) is not int or rank < 1):
            raise ValueError(f"rank {rank!r}: a rank is an integer, 1 or more")
        self.merged, self.rank = merged, rank
        self._sharing, self._ranks, self._lost = "shared", list[int | None](), list[Lost]()
        self.seconds = 0.0

    def __iter__(self) -> Iterator[tuple[str, Update]]:
        self._ranks, self._lost, self.seconds = [], [], 0.0
        for module in self.merged:
            start = time.perf_counter()
            update = self._passing(module, self.merged[module])
            self.seconds += time.perf_counter() - start
            yield module, update
            del update  # before the next one is computed

    def _passing(self, module: str, update: Update) -> Update:
        if not isinstance(update, Update):
            raise ValueError(
                f"the merge method gave {module} a {type(update).__name__}: return LowRank(A, B) "
                "or Dense(delta) of osrm_exp.lora"
            )
        if self.rank is not None:
            update = update.single.truncate(self.rank)
        self._sharing = update.sharing
        self._ranks.append(update.rank)
        self._lost += [update.lost] if update.lost else []
        return update

    @property
    def form(self) -> str:
        """`shared`, `per_task` or `routed`; `lowrank` with the largest rank of a module, or
        `dense`."""
        ranks = [rank for rank in self._ranks if rank is not None]
        low = len(ranks) == len(self._ranks)
        return f"{self._sharing}, {f'lowrank {max(ranks, default=0)}' if low else 'dense'}"

    @property
    def error(self) -> float | None:
        """What truncations cut off, by `rank` or by the method itself, as a share of the norm over
        all modules that were truncated; None where none was."""
        lost = together(self._lost)
        return None if lost is None else share(*lost)
