import torch
from synthetic import adapters

from osrm_exp.lora import SVD, LowRank, svd
from osrm_exp.merging.triplets import decorrelated, flat, polar, triplets

F64 = torch.float64


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


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
    torch.testing.assert_close(flat(svd(D)).delta, S.mean() * U @ Vh)
    assert flat(svd(torch.zeros(3, 4, dtype=F64))).rank == 0
