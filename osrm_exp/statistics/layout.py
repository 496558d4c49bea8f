"""Which rows of a module's input belong to which sample: asked of the network, not of a shape.

`[8, 8, in]` may be token first (XLNet), `[64, in]` the tokens of eight samples (OPT) and `[1, 512,
in]` no data at all (DeBERTa's relative positions go through its query projection). So two samples
are run, then run again in each other's place: rows that trade places with them are theirs, and rows
that stay as they were are not data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from osrm_exp.statistics.hooks import (
    Batches,
    check_reached,
    fed,
    model_inputs,
    routed,
    see_inputs,
    size,
    tensors,
)

Layout = Callable[[Tensor, int], Tensor]
Layouts = dict[str, list[Layout | None]]  # an entry for each call of a module; None: not data


def outside(x: Tensor, samples: int) -> Tensor:
    """`[sample, token, in]` of rows that lie sample by sample."""
    return x.flatten(0, -2).unflatten(0, (samples, -1))


def inside(x: Tensor, samples: int) -> Tensor:
    """`[sample, token, in]` of rows that lie token by token."""
    return x.flatten(0, -2).unflatten(0, (-1, samples)).transpose(0, 1)


def check_inputs(model: nn.Module, modules: Sequence[str], batch: Mapping[str, Any]) -> None:
    """Whether statistics of these modules can be collected, told by one batch.

    Raises:
        ValueError: a module that it does not reach, whose rows follow no sample or fit no mask.
    """
    for ready, found in with_layouts(model, modules, [batch]):
        see_inputs(model, found, ready, lambda *_: None)


def with_layouts(
    model: nn.Module, modules: Sequence[str], batches: Batches
) -> Iterator[tuple[dict[str, Tensor], Layouts]]:
    """Every batch as tensors, with the layouts that the first one told."""
    found: Layouts = {}
    for batch in batches:
        ready = tensors(model, batch)
        found = found or layouts(model, modules, ready)
        yield ready, found


@torch.no_grad()
def layouts(model: nn.Module, modules: Sequence[str], batch: Mapping[str, Tensor]) -> Layouts:
    """How each call of a module orders the samples of a batch; costs two runs of two samples.

    Raises:
        ValueError: a module that the batch does not reach, or one whose rows follow no sample.
    """
    pair = _two_samples(model_inputs(batch))
    before = _inputs(model, modules, pair)
    after = _inputs(model, modules, {key: value.flip(0) for key, value in pair.items()})
    found: Layouts = {}
    for name in modules:
        if len(before[name]) != len(after[name]):
            raise routed(name)
        found[name] = [_layout(name, x, y) for x, y in zip(before[name], after[name])]
    check_reached(modules, {name: any(found[name]) for name in modules})
    return found


def _layout(name: str, x: Tensor, swapped: Tensor) -> Layout | None:
    """What explains best how the rows moved, ten times better than what explains it worst."""
    if x.shape != swapped.shape:
        raise routed(name)
    x, swapped = x.float(), swapped.float()
    options: list[Layout] = [outside, inside] if x[..., 0].numel() % 2 == 0 else []
    misses: dict[Layout | None, float] = {
        layout: (layout(x, 2) - layout(swapped, 2).flip(0)).norm().item() for layout in options
    }
    misses[None] = (x - swapped).norm().item()
    # samples that are alike move nothing: data, as long as it fits
    best = min(misses, key=lambda layout: misses[layout] + (1e-6 * x.norm().item() * (not layout)))
    if not misses[best] <= 0.1 * max(misses.values()):
        raise routed(name)
    return best


def _two_samples(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Two that differ: of the batch, or one of it and itself read backwards."""
    pool = {k: torch.cat([v, v.flip(1) if v.dim() > 1 else v]) for k, v in batch.items()}
    others = range(1, size(pool))
    differ = (i for i in others if any(not torch.equal(v[0], v[i]) for v in pool.values()))
    other = next(differ, 1)
    return {key: value[[0, other]] for key, value in pool.items()}


def _inputs(
    model: nn.Module, modules: Sequence[str], batch: Mapping[str, Tensor]
) -> dict[str, list[Tensor]]:
    with fed(model, modules) as calls:
        model(**batch)
    return calls
