import pytest
import torch

from osrm_exp.lora import Dense, LowRank, stack
from osrm_exp.merging import streams as module
from osrm_exp.merging.streams import blockwise, per_group, stream, streams


def updates(*shapes: tuple[int, int]) -> dict[str, LowRank]:
    g = torch.Generator().manual_seed(0)
    return {
        f"w{i}": LowRank(torch.randn(2, 3, n, generator=g), torch.randn(2, m, 3, generator=g))
        for i, (m, n) in enumerate(shapes)
    }


@pytest.mark.parametrize("block", [1, 40, 10**6])
@pytest.mark.parametrize("factored", [True, False])
def test_blocks_are_the_stack(block, factored, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    update = updates((7, 5))["w0"]
    part = stream(update if factored else Dense(update.delta))
    for _ in range(2):  # as often as needed
        read = [block.clone() for block in part.blocks()]
        assert torch.allclose(torch.cat(read, dim=1), update.delta)


def test_a_reader_may_change_a_block_but_not_the_stack():
    dense = torch.randn(2, 4, 5)
    kept = dense.clone()
    for block in stream(Dense(dense)).blocks():
        block.zero_()
    assert torch.equal(dense, kept)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_a_stack_without_entries_is_read(shape):
    stack = Dense(torch.zeros(2, *shape))
    assert [block.shape for block in stream(stack).blocks()] == [(2, *shape)]
    assert blockwise({"w": stream(stack)}, lambda _, block: block.sum(0))["w"].shape == shape


def test_a_sample_holds_entries_of_all_tasks_at_the_same_places():
    update = updates((7, 5))["w0"]
    sample = stream(update).map(torch.abs).sample(1000, torch.Generator().manual_seed(0))
    columns = {tuple(c) for c in update.delta.abs().flatten(1).T.mul(1e4).round().tolist()}
    drawn = {tuple(c) for c in sample.T.mul(1e4).round().tolist()}
    assert drawn == columns


def test_groups_are_measured_once_and_when_needed():
    parts, measured = streams(updates((2, 3), (4, 5))), []

    def measure(group):
        measured.append(sum(part.numel for part in group))
        return measured[-1]

    together = per_group(parts, "global", measure)
    assert not measured
    assert (together("w0"), together("w1")) == (26, 26) and measured == [26]
    alone = per_group(parts, "tensor", measure)
    assert (alone("w1"), alone("w1"), alone("w0")) == (20, 20, 6) and measured == [26, 20, 6]
    with pytest.raises(ValueError, match="'layer' is unknown: choose global or tensor"):
        per_group(parts, "layer", measure)


def test_no_more_than_a_block_is_alive(monkeypatch):
    """The largest tensor that a global rule makes is one module's result."""
    monkeypatch.setattr(module, "BLOCK", 64)
    from osrm_exp.merging import ties

    made = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            made.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    stacked = stack([LowRank(torch.randn(2, 40), torch.randn(50, 2)) for _ in range(8)])
    with Largest():
        ties(
            {"w": stacked},
            space="delta",
            density=0.2,
            granularity="global",
            counting="kthvalue",
            total_parameters=None,
            merge="mean",
            scaling=1.0,
        )["w"]
    assert max(made) == 50 * 40
