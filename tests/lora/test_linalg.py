import pytest
import torch
from torch import Tensor

from osrm_exp.lora.linalg import basis, qr, svd, svd_of_product


def normal(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def close(got: Tensor, expected: Tensor) -> bool:
    return torch.allclose(got, expected, rtol=1e-10, atol=1e-10)


def orthonormal(columns: Tensor) -> bool:
    return close(columns.mT @ columns, torch.eye(columns.shape[1], dtype=columns.dtype))


@pytest.mark.parametrize("rank", [1, 3, 7, 12])
def test_svd_of_a_matrix_and_of_its_factors(rank):
    B, A = normal(9, rank), normal(rank, 7, seed=1)
    for U, S, Vh in (svd_of_product(B, A), svd(B @ A)):
        assert len(S) == min(rank, 7)
        assert orthonormal(U) and orthonormal(Vh.mT)
        assert close(U * S @ Vh, B @ A)
        assert close(S, torch.linalg.svdvals(B @ A)[: len(S)])


def test_svd_has_no_null_directions():
    B, A = normal(9, 2), normal(2, 7, seed=1)
    doubled = svd_of_product(torch.cat([B, B], dim=1), torch.cat([A, A]))
    assert len(doubled.S) == 2
    nothing = (svd_of_product(B[:, :0], A[:0]), svd_of_product(0 * B, A), svd(torch.zeros(9, 7)))
    for U, S, Vh in nothing:
        assert (U.shape, S.shape, Vh.shape) == ((9, 0), (0,), (0, 7))


@pytest.mark.parametrize("size", [1.0, 1e-200])
@pytest.mark.parametrize("columns", [0, 1, 4, 9, 12])
def test_qr_is_orthonormal_for_any_columns(columns, size):
    B = normal(9, columns) * size
    dependent = torch.cat([B, B[:, :1] * (1 + 1e-12)], dim=1)
    for X in (B, dependent, torch.zeros_like(B)):
        Q, R = qr(X)
        assert orthonormal(Q) and Q.shape[1] == min(X.shape)
        assert close(Q @ R / size, X / size)


def test_basis_spans_the_columns():
    columns = normal(9, 3)
    U = basis(torch.cat([columns, columns[:, :1] * 5], dim=1))
    assert U.shape == (9, 3) and orthonormal(U)
    assert close(U @ (U.mT @ columns), columns)
    assert basis(columns[:, :0]).shape == (9, 0)
    assert basis(columns * 0).shape == (9, 0)
