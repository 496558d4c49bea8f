import pytest
import torch
from golden import dense, distance
from synthetic import adapters

from osrm_exp.lora import SVD, LowRank, stack
from osrm_exp.merging.triplets import coordinates, decorrelated, flat, polar, triplets, without

F64 = torch.float64


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 3, 2), (2, 0, 1), (0, 0), (2,) * 32])
def test_coordinates_hold_every_delta(ranks):
    for module in adapters(ranks).values():
        tasks, lift = coordinates(module)
        for task, update in zip(tasks, module.unstack()):
            assert distance(lift(dense(task)), update.delta) < 1e-13
        assert all(size <= min(sum(ranks), 10) for size in tasks[0].shape)


def test_coordinates_end_at_the_numerical_rank():
    module = adapters()["layer0.q"]
    shared = LowRank(module.A[:1].expand_as(module.A), module.B)
    tasks, _ = coordinates(shared)
    assert tasks[0].shape == (6, 2)


def test_numbers_stay_as_they_are():
    numbers = random(3, 4, 5).float()
    tasks, lift = coordinates(numbers)
    assert torch.equal(torch.stack(tasks).float(), numbers)
    assert lift(tasks[0]).dtype == torch.float32


def test_task_of_rounding_has_no_directions():
    one, other = adapters((2, 2))["layer0.q"].unstack()
    parts = triplets([one, other * 1e-9, LowRank(one.A[:0], one.B[:, :0])], cut=1e-6)
    assert [len(part.S) for part in parts] == [2, 0, 0]


def test_polar_factor_of_dependent_columns_invents_no_direction():
    columns = random(9, 2).repeat(1, 3)
    P = polar(columns, 1e-6)
    assert torch.linalg.matrix_rank(P) == 2
    torch.testing.assert_close(P @ P.mT @ columns, columns)
    S = torch.linalg.svdvals(P)
    torch.testing.assert_close(S[:2], torch.ones(2, dtype=F64))


def test_decorrelated_triplets_of_one_task_are_its_delta():
    D = random(5, 4)
    U, S, Vh = torch.linalg.svd(D, full_matrices=False)
    torch.testing.assert_close(decorrelated([SVD(U, S, Vh)], 1e-6), D)


def test_flat_keeps_vectors_and_mean_strength():
    D = random(5, 4)
    U, S, Vh = torch.linalg.svd(D, full_matrices=False)
    torch.testing.assert_close(flat(D, 1e-6).delta, S.mean() * U @ Vh)
    assert flat(torch.zeros(3, 4, dtype=F64), 1e-6).rank == 0


def test_without_is_the_same_for_factors_and_numbers():
    update = stack(adapters((3,))["layer0.q"].unstack()).unstack()[0]
    Q = torch.linalg.qr(random(update.shape[0], 2)).Q
    rest = without(Q, update)
    assert isinstance(rest, LowRank)
    torch.testing.assert_close(rest.delta, without(Q, update.delta))
    assert (Q.mT @ rest.delta).norm() < 1e-13
