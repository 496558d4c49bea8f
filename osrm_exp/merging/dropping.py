"""Rules that drop entries at random: DARE and DELLA.

A mask depends on the seed, the module's name and the task's place alone: not on the blocks in which
a module is read, not on what other modules there are, not on the precision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial, reduce
from operator import add

import torch
from torch import Generator, Tensor

from osrm_exp.merging.elementwise import ties_of
from osrm_exp.merging.spaces import Merged, Stacks, in_space
from osrm_exp.merging.streams import Stream, blockwise, streams
from osrm_exp.merging.weighted import Weights, weighted_sum


@in_space
def dare(stacks: Stacks, *, density: float, rescale: bool, scaling: float, seed: int) -> Merged:
    """Keep every entry with probability `density`, divide it by that if `rescale`, and add.

    Yu et al., ICML 2024, arXiv 2311.03099, eq. 2; `density` is one minus the paper's drop rate.
    """
    parts = _dropped(streams(stacks), density, rescale, seed)
    return blockwise(parts, lambda _, block: block.sum(0).mul_(scaling))


@in_space
def dare_ties(
    stacks: Stacks,
    *,
    density: float,
    rescale: bool,
    seed: int,
    trim_density: float,
    granularity: str,
    counting: str,
    total_parameters: int | None,
    merge: str,
    scaling: float,
) -> Merged:
    """DARE's drops, then TIES trimmed to `trim_density`; see `dare` and `ties`."""
    parts = _dropped(streams(stacks), density, rescale, seed)
    return ties_of(parts, trim_density, granularity, counting, total_parameters, merge, scaling)


@in_space
def della(
    stacks: Stacks,
    *,
    density: float,
    epsilon: float,
    rescale: str,
    weights: Weights,
    normalize: bool,
    scaling: float,
    seed: int,
) -> Merged:
    """Keep the larger entries of a row more often, then elect a sign and add what agrees.

    Deep et al., 2024, arXiv 2406.11617. The keep probability grows with the rank of a magnitude in
    its row, from `density - epsilon` to `density + epsilon`.

    Args:
        stacks: `[task, m, n]` by module, in the space's coordinates.
        density: mean share of entries that is kept, in (0, 1].
        epsilon: half the range of keep probabilities.
        rescale: a kept entry is divided by its probability (`inverse`, the authors' code), or the
            module is brought back to its L1 norm (`l1`, mergekit).
        weights: one a task, null for 1 each.
        normalize: divides by the sum of the weights that agree.
        scaling: factor of the result.
        seed: of the draws.
    """
    if not 0 < density - epsilon <= density + epsilon <= 1:
        raise ValueError(f"density {density} +- epsilon {epsilon} must lie in (0, 1]")
    if rescale not in ("inverse", "l1"):
        raise ValueError(f"rescale {rescale!r} is unknown: choose inverse or l1")
    parts = {
        module: replace(
            part, blocks=partial(_pruned, part, module, density, epsilon, rescale, seed)
        )
        for module, part in streams(stacks).items()
    }
    return weighted_sum(parts, weights=weights, elect=True, normalize=normalize, scaling=scaling)


def _dropped(
    parts: dict[str, Stream], density: float, rescale: bool, seed: int
) -> dict[str, Stream]:
    """Every module's stream through DARE's masks, drawn anew and alike at every reading."""
    if not 0 < density <= 1:
        raise ValueError(f"density {density} is no share that can be kept: choose one in (0, 1]")
    scale = 1 / density if rescale else 1.0

    def masked(part: Stream, module: str) -> Stream:
        def blocks() -> Iterator[Tensor]:
            draw = draws(seed, module)
            for block in part.blocks():
                numbers = draw(block)
                yield block.mul_(torch.lt(numbers, density, out=numbers)).mul_(scale)

        def sample(count: int, generator: Generator) -> Tensor:
            # Other masks than those of the blocks, with the same distribution: enough to bracket.
            values = part.sample(count, generator)
            drawn = torch.rand(values.shape, generator=generator).to(values.device)
            return values * (drawn < density) * scale

        return replace(part, blocks=blocks, sample=sample)

    return {module: masked(part, module) for module, part in parts.items()}


def _pruned(
    part: Stream, module: str, density: float, epsilon: float, rescale: str, seed: int
) -> Iterator[Tensor]:
    """DELLA's blocks; the L1 norms ask for one pass more."""

    def masked() -> Iterator[Tensor]:
        return _masked(part, module, density, epsilon, rescale == "inverse", seed)

    if rescale == "inverse":
        yield from masked()
        return
    full, kept = _l1(part.blocks()), _l1(masked())
    scale = (full / kept.masked_fill(kept == 0, 1))[:, None, None]
    for block in masked():
        yield block.mul_(scale.to(block))


def _masked(
    part: Stream, module: str, density: float, epsilon: float, inverse: bool, seed: int
) -> Iterator[Tensor]:
    draw = draws(seed, module)
    for block in part.blocks():
        keep = density - epsilon + 2 * epsilon * _share_of_rank(block)
        block.mul_(draw(block) < keep)
        yield block.div_(keep) if inverse else block


def _share_of_rank(block: Tensor) -> Tensor:
    """Rank of every magnitude in its row, from 0 for the smallest to 1 for the largest."""
    order = _order(block.abs())
    ranks = torch.linspace(0, 1, block.shape[-1], dtype=block.dtype, device=block.device)
    return torch.empty_like(block).scatter_(-1, order, ranks.expand_as(block))


def _order(magnitudes: Tensor) -> Tensor:
    if magnitudes.is_cpu:  # NumPy sorts five times faster; the ranks of ties are arbitrary in both
        return torch.from_numpy(magnitudes.numpy().argsort(axis=-1))
    return magnitudes.argsort(dim=-1)


def _l1(blocks: Iterator[Tensor]) -> Tensor:
    return reduce(add, (block.abs().sum((1, 2), dtype=torch.float64) for block in blocks))


def draws(seed: int, module: str) -> Callable[[Tensor], Tensor]:
    """Uniform numbers for a module's blocks `[task, rows, n]`, which must come in their order."""
    generators: list[Generator] = []

    def draw(block: Tensor) -> Tensor:
        if not generators:
            generators.extend(_generator(seed, module, task) for task in range(len(block)))
        # float32 at any precision: a generator spends more of its stream on a float64.
        numbers = torch.empty(block.shape)
        for values, generator in zip(numbers, generators):
            values.uniform_(generator=generator)
        return numbers.to(block.device)

    return draw


def _generator(*key: object) -> Generator:
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=4).digest()
    return Generator().manual_seed(int.from_bytes(digest, "big"))
