"""Rules that drop entries at random: DARE and DELLA.

A mask depends on the seed, the module's name and the task's place alone: not on the blocks in which
a module is read, not on what other modules there are, not on the precision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
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
    """DELLA's blocks; the L1 norms ask for one pass more, which finds the draw as bits."""
    drawn = _drawn(part, module, density, epsilon, seed)
    if rescale == "inverse":
        for block, keep, kept in drawn:
            yield block.mul_(kept).div_(keep)
        return
    bits, scale = _kept_bits(part, drawn)
    start = 0
    for block in part.blocks():
        rows = slice(start, start := start + block.shape[1])
        kept = torch.from_numpy(np.unpackbits(bits[:, rows], axis=-1, count=block.shape[2]))
        yield block.mul_(kept.to(block.device)).mul_(scale.to(block))


def _kept_bits(
    part: Stream, drawn: Iterator[tuple[Tensor, Tensor, Tensor]]
) -> tuple[np.ndarray, Tensor]:
    """What a draw keeps, as bits `[task, m, n / 8]`, and the `[task, 1, 1]` that restores the L1
    norm."""
    tasks, m, n = part.shape
    # one piece of memory: many small ones that stay, between large ones, make the heap grow
    bits = np.empty((tasks, m, -(-n // 8)), np.uint8)
    full, left = torch.zeros(2, tasks, dtype=torch.float64, device=part.device)
    start = 0
    for block, _, kept in drawn:
        rows = slice(start, start := start + block.shape[1])
        bits[:, rows] = np.packbits(kept.cpu().numpy(), axis=-1)
        full += _l1(block)
        left += _l1(block.mul_(kept))
    return bits, (full / left.masked_fill(left == 0, 1))[:, None, None]


def _drawn(
    part: Stream, module: str, density: float, epsilon: float, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """`(block, keep, kept)`: the entries' probabilities, and what was drawn with them."""
    draw = draws(seed, module)
    shares = torch.linspace(0, 1, part.shape[-1], dtype=part.dtype, device=part.device)
    ranked = density - epsilon + 2 * epsilon * shares  # of a row's entries from the smallest
    for block in part.blocks():
        order = _order(block.abs())
        keep = torch.empty_like(block).scatter_(-1, order, ranked.expand_as(block))
        yield block, keep, draw(block) < keep


def _order(magnitudes: Tensor) -> Tensor:
    """Places `[*, n]` of the entries of every row, the smallest first; those of ties are arbitrary.

    On a CPU, NumPy sorts numbers several times faster than torch, and twice as fast as places.
    """
    if not magnitudes.is_cpu:
        return magnitudes.argsort(dim=-1)
    if magnitudes.dtype != torch.float32:
        return torch.from_numpy(magnitudes.numpy().argsort(axis=-1))
    # what is not negative is ordered as its bits are: sort them with the places behind them
    places = torch.arange(magnitudes.shape[-1])
    keys = magnitudes.view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(places)
    keys.numpy().sort(axis=-1)
    return keys.bitwise_and_(2**32 - 1)


def _l1(block: Tensor) -> Tensor:
    return block.abs().sum((1, 2), dtype=torch.float64)


def draws(seed: int, module: str) -> Callable[[Tensor], Tensor]:
    """Uniform numbers for a module's blocks `[task, rows, n]`, which must come in their order.

    The next draw is written over them: fresh memory for each makes the heap grow to many times it.
    """
    generators: list[Generator] = []
    words, numbers = torch.empty(0, dtype=torch.int32), torch.empty(0)

    def draw(block: Tensor) -> Tensor:
        nonlocal words, numbers
        if not generators:
            generators.extend(_generator(seed, module, task) for task in range(len(block)))
        if words.shape != block.shape:
            words, numbers = torch.empty(block.shape, dtype=torch.int32), torch.empty(block.shape)
        for values, generator in zip(words, generators):
            values.random_(generator=generator)
        # the numbers of `uniform_` in half its time, float32 at any precision
        numbers.copy_(words.bitwise_and_(2**24 - 1)).mul_(2.0**-24)
        return numbers.to(block.device)

    return draw


def _generator(*key: object) -> Generator:
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=4).digest()
    return Generator().manual_seed(int.from_bytes(digest, "big"))
