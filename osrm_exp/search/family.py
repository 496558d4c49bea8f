"""Families: what is free in a searched merge, and what a choice of it makes of the adapters.

    class Family:
        def __init__(self, scene: Scene, /, *, options): ...

An optimiser moves `start`, tensors by name, or proposes a value for each name of `space`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from osrm_exp.depth import Stacked
from osrm_exp.lora import Dense, LowRank, Update

Tensors = dict[str, Tensor]
Stacks = Mapping[str, LowRank | Dense]
Settings = Mapping[str, Any]
Choice = Mapping[str, Any]  # a value by name of a `space`


class Outcome(NamedTuple):
    """What a choice amounts to."""

    updates: Mapping[str, Update]
    heads: Sequence[Mapping[str, nn.Module]] | None = None  # in the place of the adapters' own
    stacked: Stacked | None = None  # layers in the place of the checkpoint's


@dataclass(frozen=True)
class Scene:
    """What a family is made from."""

    updates: Stacks  # after `first`
    merge: Callable[[Stacks, Settings], Mapping[str, Update]]  # its statistics bound
    tasks: Sequence[str]
    bench: Any  # the loaded network, see `osrm_exp.bench`


class Family(Protocol):
    """A merge with something free."""

    start: Tensors
    penalty: float  # of the mean magnitude of what is free

    @property
    def limits(self) -> tuple[float, float] | None:
        """What tensors are kept within."""

    @property
    def space(self) -> Mapping[str, tuple[Any, ...]]:
        """Values to try by name; the ends are the range."""

    @property
    def conditions(self) -> Mapping[str, tuple[str, Any]]:
        """Of a name that means something for one value of another name alone: these two."""

    @property
    def starts(self) -> Sequence[Choice]:
        """Points of `space` to begin at, first the one that `start` is."""

    def read(self, point: Choice) -> Tensors:
        """The tensors of a point of `space`."""

    def outcome(self, settings: Settings, tensors: Tensors) -> Outcome:
        """Differentiable in the tensors wherever the merge is."""
