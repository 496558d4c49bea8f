import gc
import weakref
from collections import Counter

import pytest
import torch

from osrm_exp.lazy import Lazy
from osrm_exp.lora import Dense, LowRank, Result, Routed


def low_rank(rank: int, *tasks: int, seed: int = 0) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    draw = (torch.randn(*tasks, *s, generator=g).double() for s in ((rank, 7), (9, rank)))
    return LowRank(*draw)


def numbers(*shape: int) -> Dense:
    return Dense(torch.randn(*shape, 9, 7))


@pytest.mark.parametrize(
    ("merged", "form"),
    [
        ({"a": low_rank(2), "b": low_rank(4)}, "shared, lowrank 4"),
        ({"a": low_rank(0)}, "shared, lowrank 0"),
        ({}, "shared, lowrank 0"),
        ({"a": low_rank(2), "b": numbers()}, "shared, dense"),
        ({"a": numbers(3)}, "per_task, dense"),
        ({"a": low_rank(2, 3)}, "per_task, lowrank 2"),
        ({"a": Routed(low_rank(2, 3), torch.zeros(3, 1, 7), 1)}, "routed, lowrank 2"),
    ],
)
def test_a_result_knows_its_form_once_it_was_read(merged, form):
    result = Result(merged)
    assert dict(result) == merged and result.form == form and result.error is None


def test_reading_computes_every_module_once_and_keeps_none():
    computed, kept = Counter(), []

    def compute(module: str) -> Dense:
        computed[module] += 1
        gc.collect()
        assert all(reference() is None for reference in kept[:-1])  # all but the one being read
        update = numbers()
        kept.append(weakref.ref(update))
        return update

    result = Result(Lazy("abcd", compute))
    for module, update in result:
        assert update.rank is None, module
    assert set(computed.values()) == {1} and result.form == "shared, dense"


@pytest.mark.parametrize("lazy", [False, True])
def test_a_rank_truncates_every_module_and_the_error_is_that_of_all_together(lazy):
    whole = {"a": low_rank(3) * 5.0, "b": Dense(low_rank(4, seed=1).delta)}
    result = Result(Lazy(whole, whole.__getitem__) if lazy else whole, 2)
    cut = dict(result)
    lost, norm = (
        sum(f(m).square().sum() for m in whole).sqrt()
        for f in (lambda m: cut[m].delta - whole[m].delta, lambda m: whole[m].delta)
    )
    assert result.error == pytest.approx((lost / norm).item(), rel=1e-9)
    assert result.form == "shared, lowrank 2"


def test_a_method_that_truncated_says_so_and_a_further_rank_adds_to_it():
    whole = {"a": low_rank(4), "b": low_rank(3, seed=1) * 2.0}
    own = Result({m: u.truncate(2).to(torch.float32) for m, u in whole.items()})
    direct, twice, once = Result(whole, 1), Result(own.merged, 1), Result(whole, 2)
    for result in (own, direct, twice, once):
        dict(result)
    assert 0 < own.error == once.error < twice.error
    assert twice.error == pytest.approx(direct.error, rel=1e-5)


def test_what_is_no_update_is_refused():
    with pytest.raises(ValueError, match=r"gave a a Tensor: return LowRank\(A, B\) or Dense"):
        dict(Result({"a": torch.zeros(9, 7)}))


@pytest.mark.parametrize("update", [numbers(3), Routed(low_rank(2, 3), torch.zeros(3, 1, 7), 1)])
def test_what_is_no_single_delta_is_not_truncated(update):
    with pytest.raises(ValueError, match="no one delta holds it"):
        dict(Result({"a": update}, 2))


@pytest.mark.parametrize("rank", [0, -1, "3", 2.0, True])
def test_a_rank_that_is_none_is_refused(rank):
    """-1 cut off the last direction without a word."""
    with pytest.raises(ValueError, match=f"rank {rank!r}: a rank is an integer, 1 or more"):
        Result({"a": low_rank(2)}, rank)
