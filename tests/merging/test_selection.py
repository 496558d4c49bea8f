import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from osrm_exp.lora import Dense, LowRank
from osrm_exp.merging import selection
from osrm_exp.merging.selection import kth_smallest, trim, trim_threshold
from osrm_exp.merging.streams import stream


def kinds() -> dict[str, tuple[Tensor, Tensor]]:
    """Factors whose products are hard to select from."""
    g = torch.Generator().manual_seed(0)
    A, B = torch.randn(3, 2, 60, generator=g), torch.randn(3, 40, 2, generator=g)
    empty = A.clone()
    empty[0] = 0
    rows = B.clone()
    rows[:, 5:] = 0
    return {
        "dense": (A, B),
        "zero rows": (A, rows),
        "a zero task": (empty, B),
        "ties": (A.round(), B.round()),
        "all tied": (A.sign(), B.sign()),
        "denormal": (A * 1e-30, B * 1e-12),
    }


KINDS = kinds()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("room", [2**24, 500, 5])
def test_kth_smallest_is_exact_whatever_is_collected(kind, room, dtype, monkeypatch):
    """With little room the bracket overflows, and is halved until it does not."""
    monkeypatch.setattr(selection, "FEW", 0)
    monkeypatch.setattr(selection, "COLLECT", room)
    monkeypatch.setattr(selection, "SAMPLE", range(300, 300))
    A, B = (factor.to(dtype) for factor in KINDS[kind])
    parts = [stream(LowRank(A, B)), stream(LowRank(A[:, :, :7], B[:, :11]))]
    values = torch.cat([block.flatten(1) for part in parts for block in part.blocks()], dim=1)
    for k in (1, 2, values.shape[1] // 2, values.shape[1] - 1, values.shape[1]):
        assert torch.equal(kth_smallest(parts, k), values.kthvalue(k).values)
        sizes = [part.map(Tensor.abs_) for part in parts]
        assert torch.equal(kth_smallest(sizes, k, least=0.0), values.abs().kthvalue(k).values)


def test_a_bracket_that_misses_is_moved(monkeypatch):
    monkeypatch.setattr(selection, "_bracket", lambda *_: (torch.zeros(3), torch.full((3,), 1e-3)))
    A, B = KINDS["dense"]
    sizes = (B @ A).abs().flatten(1)
    for k in (1, 1000, 2400):
        found = kth_smallest([stream(LowRank(A, B)).map(Tensor.abs_)], k, least=0.0)
        assert torch.equal(found, sizes.kthvalue(k).values)


def test_an_entry_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no entry number 7 among 6"):
        kth_smallest([stream(Dense(torch.randn(1, 2, 3)))], 7)


@given(density=st.floats(0, 1), counting=st.sampled_from(["kthvalue", "mask_rate", "exact"]))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_survivors_of_a_trim(density, counting):
    A, B = KINDS["dense"]
    d = 2400
    threshold = trim_threshold([stream(LowRank(A, B))], density, counting, None)
    survivors = trim(B @ A, threshold).count_nonzero((1, 2))
    expected = {
        "kthvalue": int(d * density) + 1,
        "mask_rate": d - int(d * (1 - density)) + 1,
        "exact": int(d * density),
    }[counting]
    assert (survivors == min(expected, d)).all()


def test_nothing_is_trimmed_where_adapters_are_less_than_the_density_of_a_checkpoint():
    parts = [stream(Dense(torch.randn(2, 3, 40)))]  # 12 % of a thousand
    assert not trim_threshold(parts, 0.2, "kthvalue", 1000).any()
    assert (trim_threshold(parts, 0.1, "kthvalue", 1000) > 0).all()
    assert (trim_threshold(parts, 0.2, "kthvalue", None) > 0).all()


@pytest.mark.parametrize(
    ("density", "counting", "total", "message"),
    [
        (20, "exact", None, "density 20 is no share"),
        (0.2, "topk", None, "counting 'topk' is unknown"),
        (0.2, "exact", 5, "total_parameters 5 is less than the 6"),
    ],
)
def test_a_trim_that_means_nothing_is_refused(density, counting, total, message):
    with pytest.raises(ValueError, match=message):
        trim_threshold([stream(Dense(torch.randn(1, 2, 3)))], density, counting, total)


def test_trim_keeps_ties_and_works_in_place():
    block = torch.tensor([[[1.0, -2.0, 2.0, 0.5]], [[1.0, 1.0, 3.0, 4.0]]])
    trimmed = trim(block, torch.tensor([2.0, math.inf]))
    assert trimmed is block
    assert block.tolist() == [[[0.0, -2.0, 2.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]]]
