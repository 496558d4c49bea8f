"""Stacks read in blocks of rows, so that no more than one block of dense deltas is ever alive.

Everything is computed where the stack lies; random numbers are drawn on the CPU, so that they are
the same ones everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Generator, Tensor

from osrm_exp.lazy import Lazy
from osrm_exp.lora import Dense, LowRank
from osrm_exp.merging.spaces import Stacks

BLOCK = 2**21  # numbers in a block: few enough for a cache, many enough for threads
Measure = TypeVar("Measure")


@dataclass(frozen=True)
class Stream:
    """A stack `[task, m, n]` that may be read as often as needed and is never held whole.

    A block belongs to its reader, who may change it, until the next one is read into its place.
    """

    shape: tuple[int, int, int]
    dtype: torch.dtype
    device: torch.device
    blocks: Callable[[], Iterator[Tensor]]  # -> [task, rows, n], top to bottom
    sample: Callable[[int, Generator], Tensor]  # -> [task, count], the same entries

    @property
    def numel(self) -> int:
        """Numbers of one task."""
        return self.shape[1] * self.shape[2]

    def map(self, change: Callable[[Tensor], Tensor]) -> Stream:
        """The stream of `change(block)`, an entrywise function of `[task, *]`, in place or not."""
        return replace(
            self,
            blocks=lambda: map(change, self.blocks()),
            sample=lambda count, generator: change(self.sample(count, generator)),
        )


def stream(stack: LowRank | Dense) -> Stream:
    """Read a stack given as factors or as numbers."""
    tasks, m, n = len(stack), *stack.shape
    rows = max(1, BLOCK // max(1, tasks * n))

    def blocks() -> Iterator[Tensor]:
        buffer = None  # one for all full blocks: fresh memory costs more
        for start in range(0, max(m, 1), rows):
            full = start + rows <= m
            block = stack.rows(slice(start, start + rows), out=buffer if full else None)
            buffer = block if full else buffer
            yield block

    def sample(count: int, generator: Generator) -> Tensor:
        if not m * n:
            return torch.zeros(tasks, 0, device=stack.device)
        i = torch.randint(m, (count,), generator=generator).to(stack.device)
        j = torch.randint(n, (count,), generator=generator).to(stack.device)
        return stack.entries(i, j)

    return Stream((tasks, m, n), stack.dtype, stack.device, blocks, sample)


def streams(stacks: Stacks) -> dict[str, Stream]:
    """Read every module."""
    return {module: stream(stack) for module, stack in stacks.items()}


def changed(
    parts: Mapping[str, Stream], change: Callable[[str, Tensor], Tensor]
) -> dict[str, Stream]:
    """Every module's stream with `change(module, block)` applied, an entrywise function."""
    return {module: part.map(functools.partial(change, module)) for module, part in parts.items()}


def per_group(
    parts: Mapping[str, Stream], granularity: str, measure: Callable[[list[Stream]], Measure]
) -> Callable[[str], Measure]:
    """`module -> measure(its group)`: all modules together (`global`) or each alone (`tensor`).

    A group is measured when one of its modules is first asked for, and once.
    """
    if granularity == "global":
        once = functools.cache(lambda: measure(list(parts.values())))
        return lambda _: once()
    if granularity == "tensor":
        return functools.cache(lambda module: measure([parts[module]]))
    raise ValueError(f"granularity {granularity!r} is unknown: choose global or tensor")


def blockwise(parts: Mapping[str, Stream], merge: Callable[[str, Tensor], Tensor]) -> Lazy[Dense]:
    """`merge(module, block [task, rows, n]) -> [*, rows, n]` on every block, module by module."""

    def compute(module: str) -> Dense:
        done, start = torch.empty(0), 0
        for block in parts[module].blocks():
            merged = merge(module, block)
            if start == 0:
                done = merged.new_empty(*merged.shape[:-2], *parts[module].shape[1:])
            done[..., start : start + merged.shape[-2], :] = merged
            start += merged.shape[-2]
        return Dense(done)

    return Lazy(parts, compute)
