import inspect
from itertools import pairwise

import pytest
import torch
from golden import dense, distance, load
from synthetic import adapters, changed

from osrm_exp.lora import LowRank
from osrm_exp.merging import ctm_ta, ctm_ties
from osrm_exp.merging.ctm import compress, compressed, leading, subspaces

F64 = torch.float64
SEARCH = dict(beta=0.25, sweeps=800, tol=1e-10)
TIES = dict(granularity="tensor", counting="kthvalue", total_parameters=None, merge="mean")
dtypes = pytest.mark.parametrize("dtype", [F64, torch.float32])


@dtypes
@pytest.mark.parametrize("name", ["ctm_ta", "ctm_ties", "ctm_ties_unequal"])
def test_golden(name, dtype):
    golden = load(name, dtype)
    options = golden.hyperparameters
    search = dict(rank=options["rank"], beta=options["beta"], sweeps=800, tol=1e-12)
    if name == "ctm_ta":
        merged = ctm_ta(golden.updates, **search, scaling=options["lambda"])
    else:
        density = options["k_percent"] / 100
        merged = ctm_ties(
            golden.updates, **search, **TIES, density=density, scaling=options["lambda"]
        )
    golden.check(merged)


@pytest.mark.parametrize("name", ["ctm_ta", "ctm_ties", "ctm_ties_unequal"])
def test_subspaces_golden(name):
    """Column by column: a rule on entries needs the vectors, not only their span."""
    golden = load(name)
    options = golden.hyperparameters
    for module, update in golden.updates.items():
        found, _ = compress(update, options["rank"], options["beta"], sweeps=800, tol=1e-12)
        for side, got in (("basis_out", found.U), ("basis_in", found.V)):
            expected = golden.tensors[side][module]
            overlap = (got * expected).sum(0).abs()
            torch.testing.assert_close(overlap, torch.ones_like(overlap), rtol=1e-6, atol=1e-6)


def test_all_directions_and_task_arithmetic_is_task_arithmetic():
    updates = adapters((2, 1, 3))
    merged = ctm_ta(updates, rank=6, **SEARCH, scaling=0.7)
    assert all(distance(merged[m], 0.7 * u.delta.sum(0)) < 1e-12 for m, u in updates.items())


@pytest.mark.parametrize("rank", [None, 1, 2, 40])
def test_result_has_the_rank_asked_for(rank):
    updates = adapters((2, 1, 3))
    for update in ctm_ta(updates, rank=rank, **SEARCH, scaling=1.0).values():
        assert update.rank == min(rank or 3, 6)


def test_alternation_keeps_more_each_sweep_and_no_rotation_keeps_more():
    core = torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(0), dtype=F64)

    stack = LowRank(torch.eye(6, dtype=F64).expand(3, 6, 6), core)

    def kept(U, V):
        return (U.mT @ core @ V).norm().item()

    history = [kept(*subspaces(stack, 2, sweeps, tol=0.0)) for sweeps in (0, 1, 2, 5, 50)]
    assert all(later >= before - 1e-12 for before, later in pairwise(history))
    U, V = subspaces(stack, 2, 500, tol=1e-12)
    for size in (1e-2, 1e-1):
        noise = torch.randn(U.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
        assert kept(torch.linalg.qr(U + size * noise).Q, V) < kept(U, V)
    torch.testing.assert_close(U.mT @ U, torch.eye(2, dtype=F64))


def test_beta_zero_finds_the_same_subspaces_whatever_the_norms():
    update = adapters((2, 2, 2))["layer0.q"]
    larger = LowRank(update.A, update.B * torch.tensor([10.0, 1.0, 0.1])[:, None, None])
    one, other = (compress(u, 2, beta=0.0, sweeps=800, tol=1e-12)[0] for u in (update, larger))
    assert distance(one.U @ one.U.mT, other.U @ other.U.mT) < 1e-7
    torch.testing.assert_close(other.core[0].norm(), 10 * one.core[0].norm(), rtol=1e-6, atol=0)


def test_untrained_task_is_not_blown_up():
    updates = adapters((2, 2, 2))
    untrained = changed(updates, lambda t, u: u if t < 2 else LowRank(u.A, u.B * 1e-14))
    absent = changed(updates, lambda t, u: u if t < 2 else LowRank(u.A[:0], u.B[:, :0]))
    merged, other = (ctm_ta(u, rank=2, **SEARCH, scaling=1.0) for u in (untrained, absent))
    assert all(distance(merged[m], other[m]) < 1e-9 for m in updates)


def gram_of(values):
    """A matrix with these eigenvalues, and its eigenvectors in their order."""
    g = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=F64)).Q
    return vectors * values @ vectors.mT, vectors


VALUES = {
    "a gap": torch.cat([torch.tensor([9.0, 8.0, 7.0]), torch.linspace(0.3, 0.0, 37)]),
    "a gap over many": torch.cat([torch.tensor([9.0, 8.0, 7.0]), torch.full((37,), 1.5)]),
    "no gap": torch.linspace(9.0, 1.0, 40),
    "nothing": torch.cat([torch.tensor([9.0]), torch.zeros(39)]),
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_leading_vectors_are_those_of_the_whole_wherever_they_are_sought(values):
    gram, vectors = gram_of(values.double())
    noise = torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    for near in (vectors[:, :3] + 1e-2 * noise, vectors[:, 1:4], vectors[:, 3:6], noise):
        found = leading(gram, 3, torch.linalg.qr(near).Q)
        assert ((found * (gram @ found)).sum(0) - values[:3]).abs().max() < 1e-12 * values[0]
        strong = values[:3] > 0
        overlap = (found * vectors[:, :3]).sum(0).abs()[strong]
        torch.testing.assert_close(overlap, torch.ones_like(overlap), rtol=1e-11, atol=0)
        torch.testing.assert_close(found.mT @ found, torch.eye(3, dtype=F64))


def test_many_tasks_ask_for_few_decompositions_of_the_whole(monkeypatch):
    """A sweep costs products alone once the subspaces have settled near their places."""
    sizes, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda X: sizes.append(len(X)) or eigh(X))
    g = torch.Generator().manual_seed(0)
    A, B = torch.randn(32, 2, 256, generator=g), torch.randn(32, 256, 2, generator=g)
    compress(LowRank(A, B), None, beta=0.25, sweeps=100, tol=0.0)
    assert sizes.count(2) > 150 and sizes.count(64) == len(sizes) - sizes.count(2) < 50


def test_thirty_two_tasks():
    updates = adapters((2,) * 32)
    for update in ctm_ties(updates, rank=None, **SEARCH, **TIES, density=0.3, scaling=1.0).values():
        assert dense(update).isfinite().all() and update.rank == 2


def test_any_rule_can_be_compressed():
    def largest(stacks, *, scaling: float):
        """The largest core."""
        return {
            m: core.task(core.delta.flatten(1).norm(dim=1).argmax()) * scaling
            for m, core in stacks.items()
        }

    method = compressed(largest)
    assert list(inspect.signature(method).parameters) == [
        "updates", "rank", "beta", "sweeps", "tol", "scaling",
    ]  # fmt: skip
    updates = adapters((2,))
    merged = method(updates, rank=None, **SEARCH, scaling=2.0)
    assert all(distance(merged[m], 2 * u.delta[0]) < 1e-12 for m, u in updates.items())
