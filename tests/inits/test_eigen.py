import pytest
import torch

from osrm_exp.inits import eigen

WIDTH, COUNT = 400, 5


@pytest.fixture(autouse=True)
def no_matrix_is_small(monkeypatch):
    """The method for large matrices, on matrices that a test can afford."""
    monkeypatch.setattr(eigen, "WIDE", 0)


@pytest.fixture
def refuse_eigh(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("fell back to a full decomposition")

    monkeypatch.setattr(eigen, "_part", refuse)


def matrix(values, seed=0):
    """A dense matrix `[n, n]` with these eigenvalues, and its vectors in their order."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    Q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    G = (Q * values) @ Q.T
    return (G + G.T) / 2, Q


def sine(A, B):
    """Of the largest angle between two column spaces."""
    return torch.linalg.matrix_norm(A - B @ (B.mT @ A), 2).item()


share = torch.arange(WIDTH, dtype=torch.float64) / WIDTH
ones = torch.ones(COUNT, dtype=torch.float64)
SPECTRA = {  # ascending
    "gap": torch.cat([1e-5 * (1 + share[:COUNT]), 1e-3 + share[COUNT:]]),
    "decaying": torch.exp(16 * (share - 1)),
    "tiny": torch.cat([1e-9 * (1 + share[:COUNT]), torch.exp(14 * (share[COUNT:] - 1))]),
    "flat": 1 + share,
    "power": (1.0 + WIDTH * (1 - share)) ** -2,
    "cluster": torch.cat([1e-4 * ones, 1e-4 + 1e-12 * ones, 0.1 + share[2 * COUNT :]]),
    "one zero": torch.cat([torch.zeros(1), torch.exp(9 * (share[1:] - 1))]).double(),
    "rank-deficient": torch.cat([torch.zeros(60), torch.exp(9 * (share[60:] - 1))]).double(),
    "constant": torch.ones(WIDTH, dtype=torch.float64),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_the_energy_is_the_least_there_is(name, refuse_eigh):
    values = SPECTRA[name]
    G, _ = matrix(values)
    found, vectors = eigen.smallest(G, COUNT)
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(COUNT, dtype=torch.float64))
    energy = (vectors * (G @ vectors)).sum().item()
    least = values[:COUNT].sum().item()
    assert energy - least <= 5e-3 * least + 1e-14
    torch.testing.assert_close(found.sum().item(), energy, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("name", ["gap", "decaying", "tiny", "one zero"])
def test_across_a_gap_the_subspace_is_the_true_one(name, refuse_eigh):
    G, truth = matrix(SPECTRA[name])
    values, vectors = eigen.smallest(G, COUNT)
    assert sine(truth[:, :COUNT], vectors) < 1e-6
    torch.testing.assert_close(values, SPECTRA[name][:COUNT], rtol=1e-5, atol=1e-14)


@pytest.mark.parametrize("name", ["gap", "decaying", "power", "rank-deficient"])
def test_the_largest_pairs(name, refuse_eigh):
    G, truth = matrix(SPECTRA[name])
    values, vectors = eigen.largest(G, COUNT)
    torch.testing.assert_close(values, SPECTRA[name].flip(0)[:COUNT], rtol=1e-3, atol=0)
    if name != "gap":  # its upper end is flat
        assert sine(truth[:, -COUNT:], vectors) < 1e-6


def test_every_vector_has_a_positive_largest_entry_and_runs_repeat():
    G, truth = matrix(SPECTRA["decaying"])
    for solve in (eigen.smallest, eigen.largest):
        _, vectors = solve(G, COUNT)
        top = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        assert (top > 0).all()
        torch.manual_seed(1)
        assert torch.equal(vectors, solve(G.clone(), COUNT)[1])
    _, vectors = eigen.smallest(G, COUNT)
    torch.testing.assert_close(vectors, eigen.signed(truth[:, :COUNT]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["gap", "flat"])
def test_storage_in_float32_does_not_matter_where_the_problem_is_well_posed(name, refuse_eigh):
    G, _ = matrix(SPECTRA[name])
    assert sine(eigen.smallest(G, COUNT)[1], eigen.smallest(G.float(), COUNT)[1]) < 1e-3
    assert eigen.smallest(G.float(), COUNT)[1].dtype == torch.float64


def test_negative_rounding_of_a_float32_gram_is_survived():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(WIDTH // 2, WIDTH, generator=generator)
    G = (X.T @ X).double() + 1e-5 * torch.randn(WIDTH, WIDTH, generator=generator)
    G = ((G + G.T) / 2).float()
    assert torch.linalg.eigvalsh(G.double())[0] < -1e-5
    values, vectors = eigen.smallest(G, COUNT)
    least = torch.linalg.eigvalsh(G.double())[:COUNT].sum()
    torch.testing.assert_close(values.sum(), least, rtol=5e-3, atol=0)
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(COUNT, dtype=torch.float64))


@pytest.mark.parametrize("solve", [eigen.smallest, eigen.largest])
def test_what_does_not_converge_is_decomposed_in_full(solve, monkeypatch):
    monkeypatch.setattr(eigen, "RESTARTS", 1)
    monkeypatch.setattr(eigen, "PRECISE", 1e-15)
    G, _ = matrix(SPECTRA["flat"])
    values = torch.linalg.eigvalsh(G)
    expected = values[:COUNT] if solve is eigen.smallest else values.flip(0)[:COUNT]
    torch.testing.assert_close(solve(G, COUNT)[0], expected, rtol=1e-13, atol=0)


def test_a_small_matrix_is_decomposed_in_full(monkeypatch):
    monkeypatch.undo()
    G, truth = matrix(SPECTRA["gap"][-50:])
    assert sine(truth[:, :3], eigen.smallest(G, 3)[1]) < 1e-12
    assert sine(truth[:, -3:], eigen.largest(G, 3)[1]) < 1e-12
    assert eigen.smallest(G, 50)[1].shape == (50, 50)
    assert eigen.smallest(G, 0)[1].shape == eigen.largest(G, 0)[1].shape == (50, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nullity_counts_what_rounding_cannot_tell_from_zero(dtype):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(WIDTH - 37, WIDTH, generator=generator, dtype=torch.float64)
    assert eigen.nullity((X.T @ X / WIDTH).to(dtype)) == 37
    assert eigen.nullity(torch.eye(6, dtype=dtype)) == 0
    assert eigen.nullity(torch.zeros(6, 6, dtype=dtype)) == 6
