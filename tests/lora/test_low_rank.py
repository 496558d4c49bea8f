import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from osrm_exp.lora import Dense, LowRank, cores, stack


def update(rank: int, out: int = 9, width: int = 7, seed: int = 0) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, width, generator=g, dtype=torch.float64)
    return LowRank(A, torch.randn(out, rank, generator=g, dtype=torch.float64))


def close(got: Tensor, expected: Tensor) -> bool:
    return torch.allclose(got, expected, rtol=1e-10, atol=1e-10)


def orthonormal(columns: Tensor) -> bool:
    return close(columns.mT @ columns, torch.eye(columns.shape[1], dtype=columns.dtype))


def test_factors_must_share_a_rank():
    with pytest.raises(ValueError, match=r"A \[2, 7\] and B \[9, 3\] do not share a rank"):
        LowRank(torch.zeros(2, 7), torch.zeros(9, 3))
    with pytest.raises(ValueError, match="do not share a rank"):
        LowRank(torch.zeros(4, 2, 7), torch.zeros(3, 9, 2))


def test_an_update_knows_its_shape_and_scales():
    one = update(2)
    assert (one.rank, one.shape) == (2, (9, 7))
    assert close((one * 3).delta, 3 * one.B @ one.A)
    assert one.to(torch.float32).A.dtype == torch.float32


@given(ranks=st.lists(st.integers(0, 4), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_a_stack_gives_its_tasks_back_and_adds_them(ranks):
    tasks = [update(rank, seed=seed) for seed, rank in enumerate(ranks)]
    stacked = stack(tasks)
    assert len(stacked) == len(ranks) and stacked.ranks == tuple(ranks)
    assert stacked.A.shape == (len(ranks), max(ranks), 7)
    for one, again in zip(tasks, stacked.unstack()):
        assert torch.equal(one.A, again.A) and torch.equal(one.B, again.B)
    together = stacked.total()
    assert together.rank == sum(ranks)
    assert close(together.delta, sum(one.delta for one in tasks))
    for one, block in zip(tasks, stacked.blocks):
        assert torch.equal(together.A[block], one.A) and torch.equal(together.B[:, block], one.B)
    assert (stacked * 2).ranks == stacked.ranks


def test_ranks_of_a_stack_of_equal_ranks_need_not_be_said():
    assert LowRank(torch.zeros(3, 2, 7), torch.zeros(3, 9, 2)).ranks == (2, 2, 2)


def test_updates_of_different_shapes_are_not_stacked():
    with pytest.raises(ValueError, match="must share one shape"):
        stack([update(2), update(2, out=8)])


@pytest.mark.parametrize("ranks", [(2, 2), (1, 3, 0), (5, 5, 5)])
def test_cores_are_every_task_exactly(ranks):
    tasks = [update(rank, seed=seed) for seed, rank in enumerate(ranks)]
    found = cores(stack(tasks))
    assert orthonormal(found.U) and orthonormal(found.V)
    assert found.core.shape == (len(ranks), min(sum(ranks), 9), min(sum(ranks), 7))
    for one, core in zip(tasks, found.core):
        assert close(found.U @ core @ found.V.mT, one.delta)
        assert close(found.lift(core).delta, one.delta)
    assert close(found.lift(found.core).delta, stack(tasks).delta)


def test_cores_of_a_shared_a_have_its_rank():
    A = update(2).A
    tasks = [LowRank(A, update(2, seed=seed).B) for seed in range(3)]
    found = cores(stack(tasks))
    assert found.core.shape == (3, 6, 2)
    assert found.lift(found.core.sum(0)).rank == 2
    assert close(found.lift(found.core.sum(0)).delta, sum(one.delta for one in tasks))


def test_null_directions_do_not_enter_a_core():
    """Rounding of 1e-13 in a shared A leaves the core as small as it is."""
    A, g = update(2).A, torch.Generator().manual_seed(1)
    noisy = [A + 1e-13 * torch.randn(A.shape, generator=g, dtype=A.dtype) for _ in range(3)]
    tasks = [LowRank(a, update(2, seed=seed).B) for seed, a in enumerate(noisy)]
    assert cores(stack(tasks)).core.shape == (3, 6, 2)


def test_balanced_factors_are_the_same_delta_and_know_no_gauge():
    one, G = update(3), update(3, 3, 3, seed=1).delta
    same = one.balanced()
    assert close(same.delta, one.delta)
    assert close(same.B.mT @ same.B, same.A @ same.A.mT)
    other = LowRank(torch.linalg.inv(G) @ one.A, one.B @ G).balanced()
    signs = (same.A * other.A).sum(1).sign()
    assert close(other.A * signs[:, None], same.A)


@pytest.mark.parametrize("rank", [0, 1, 2, 3, 5])
def test_truncation_is_the_nearest_update_and_says_its_error(rank):
    one = update(3)
    for given_as in (one, Dense(one.delta)):
        nearest = given_as.truncate(rank)
        S = torch.linalg.svdvals(one.delta)
        assert nearest.rank == min(rank, 3)
        assert nearest.error == pytest.approx((S[rank:].norm() / S.norm()).item(), abs=1e-12)
        distance = (nearest.delta - one.delta).norm() / one.delta.norm()
        assert distance.item() == pytest.approx(nearest.error, abs=1e-10)
    assert one.error is None


def test_a_second_truncation_counts_the_first():
    one = update(3)
    twice = (one.truncate(2).to(torch.float32) * 2).truncate(1)
    assert twice.error == pytest.approx(one.truncate(1).error, abs=1e-6)
    assert one.truncate(2).balanced().error == one.truncate(2).error


def test_nothing_truncates_to_nothing():
    nearest = (update(3) * 0.0).truncate(2)
    assert (nearest.rank, nearest.error) == (0, 0.0)
    assert update(3).truncate(0).truncate(2).error == 1


@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 3, 2), (2, 0, 1), (0, 0), (2,) * 32])
def test_coordinates_hold_every_delta(ranks):
    stacked = stack([update(rank, seed=seed) for seed, rank in enumerate(ranks)])
    tasks, lift = stacked.coordinates()
    for task, one in zip(tasks, stacked.unstack()):
        assert close(lift(task.delta).delta, one.delta)
    assert all(size <= min(sum(ranks), 9) for size in tasks[0].shape)


def test_coordinates_end_at_the_numerical_rank():
    A = update(2).A
    tasks, _ = stack([LowRank(A, update(2, seed=seed).B) for seed in range(3)]).coordinates()
    assert tasks[0].shape == (6, 2)
