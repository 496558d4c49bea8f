import pytest
import torch
from adapters import adapters, permuted, rank_of, regauged, repeated
from golden import dense, distance

from osrm_exp.lora import LowRank
from osrm_exp.merging.do_merging import decoupled_mean, do_merging, pulled_apart

DEFAULTS = dict(gamma=1.0, steps=50, lr=1.0, scaling=1.0)


def overlaps(factors):
    pairs = [(i, j) for i in range(len(factors)) for j in range(len(factors)) if i != j]
    return sum((factors[i] @ factors[j].mT).square().sum().item() for i, j in pairs)


def normalized(factors):
    return [F / F.norm() * len(F) ** 0.5 for F in factors]


def test_one_task_keeps_its_adapter():
    updates = adapters((3,))
    for module, merged in do_merging(updates, **DEFAULTS).items():
        assert distance(merged, updates[module].delta[0]) < 1e-12


def test_equal_adapters_give_the_adapter_without_orthogonalisation():
    updates = repeated(adapters(), 4)
    for module, merged in do_merging(updates, **{**DEFAULTS, "steps": 0}).items():
        assert distance(merged, updates[module].delta[0]) < 1e-12


def test_factor_form_equals_the_dense_definition():
    """The paper's product of sums at `scaling / T^2`, columns of zero left out."""
    updates = adapters((2, 4, 3))
    merged = do_merging(updates, **{**DEFAULTS, "steps": 0, "scaling": 1.7})
    for module, update in updates.items():
        norms = update.delta.norm(dim=1)
        directions = update.delta / norms[:, None]
        expected = 1.7 / 9 * norms.sum(0) * directions.sum(0)
        assert distance(merged[module], expected) < 1e-12
        assert merged[module].rank == 9


def test_depends_on_the_deltas_alone():
    updates = adapters((2, 4, 3))
    other, merged = do_merging(regauged(updates), **DEFAULTS), do_merging(updates, **DEFAULTS)
    reordered = do_merging(permuted(updates, (2, 0, 1)), **DEFAULTS)
    for module in updates:
        assert distance(other[module], merged[module]) < 1e-9
        assert distance(reordered[module], merged[module]) < 1e-10


def test_size_of_a_task_leaves_the_directions_alone():
    updates = adapters((2, 3))
    larger = {
        m: LowRank(u.A, u.B * torch.tensor([10.0, 1.0])[:, None, None], u.ranks)
        for m, u in updates.items()
    }
    one, ten = do_merging(updates, **DEFAULTS), do_merging(larger, **DEFAULTS)
    for module in updates:
        columns = [dense(merged[module]) for merged in (one, ten)]
        directions = [columns / columns.norm(dim=0) for columns in columns]
        assert distance(directions[1], directions[0]) < 1e-10


def test_columns_of_zero_have_no_direction():
    updates = adapters((2, 3))
    for update in updates.values():
        update.A[:, :, 4] = 0
        update.A[0, :, 7] = 0
    for module, merged in do_merging(updates, **{**DEFAULTS, "steps": 0}).items():
        assert dense(merged)[:, 4].abs().max() < 1e-12
        alone = updates[module].delta[1][:, 7] / 4  # mean norm a / 2, mean direction 1 / 2
        assert (dense(merged)[:, 7] - alone).norm() < 1e-12


def test_descent_is_monotone_and_stays_in_the_span():
    g = torch.Generator().manual_seed(0)
    factors = normalized([torch.randn(3, 12, generator=g).double() for _ in range(4)])
    losses = []
    for steps in (0, 1, 2, 5, 20, 100):
        moved = pulled_apart(factors, gamma=0.5, steps=steps, lr=1.0)
        anchor = sum((X - F).square().sum().item() for X, F in zip(moved, factors))
        losses.append(overlaps(moved) + 0.5 * anchor)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]


def test_descent_in_coordinates_equals_descent_on_the_factors():
    g = torch.Generator().manual_seed(0)
    factors = normalized([torch.randn(2, 20, generator=g).double() for _ in range(3)])
    X = [F.clone().requires_grad_() for F in factors]
    stacked = torch.cat(factors)
    step = 0.7 / (16 * torch.linalg.matrix_norm(stacked, 2) ** 2 + 2 * 0.3)
    for _ in range(30):
        pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
        loss = sum((X[i] @ X[j].mT).square().sum() for i, j in pairs)
        loss = loss + 0.3 * sum((x - F).square().sum() for x, F in zip(X, factors))
        slopes = torch.autograd.grad(loss, X)
        X = [(x - step * slope).detach().requires_grad_() for x, slope in zip(X, slopes)]
    moved = pulled_apart(factors, gamma=0.3, steps=30, lr=0.7)
    for x, y in zip(X, moved):
        assert distance(y, x.detach()) < 1e-12


def test_orthogonal_factors_do_not_move():
    factors = list(torch.eye(9, dtype=torch.float64).split(3))
    for before, after in zip(factors, pulled_apart(factors, gamma=1.0, steps=50, lr=1.0)):
        assert distance(after, before) < 1e-14


def test_without_an_anchor_factors_become_orthogonal():
    g = torch.Generator().manual_seed(0)
    factors = normalized([torch.randn(2, 16, generator=g).double() for _ in range(3)])
    moved = pulled_apart(factors, gamma=0.0, steps=5000, lr=1.0)
    assert overlaps(moved) < 1e-4 * overlaps(factors)
    assert all(F.norm() > 0.5 for F in moved)


def test_absent_and_idle_tasks():
    updates = adapters((3, 0, 2))
    idle = {m: LowRank(u.A, u.B * 0, u.ranks) for m, u in updates.items()}
    for merged in do_merging(updates, **DEFAULTS).values():
        assert rank_of(merged) <= 5
    for given in (idle, adapters((0, 0))):
        assert all(not dense(merged).any() for merged in do_merging(given, **DEFAULTS).values())


def test_many_float32_tasks():
    for merged in do_merging(adapters((1,) * 32, dtype=torch.float32), **DEFAULTS).values():
        assert merged.A.dtype == merged.B.dtype == torch.float32
        assert dense(merged).isfinite().all()


def test_rounding_noise_stays_rounding_noise():
    updates = adapters((2, 4))
    g = torch.Generator().manual_seed(9)
    noisy = {
        m: LowRank(u.A * (1 + 1e-13 * torch.randn(u.A.shape, generator=g).double()), u.B, u.ranks)
        for m, u in updates.items()
    }
    merged = do_merging(noisy, **DEFAULTS)
    for module, expected in do_merging(updates, **DEFAULTS).items():
        assert distance(merged[module], expected) < 1e-8


def test_decoupled_mean_of_one_is_itself():
    u = adapters((3,))["layer0.q"].unstack()[0]
    assert distance(decoupled_mean([u]), u.delta) < 1e-14
    assert pytest.approx(1) == decoupled_mean([u, u]).delta.norm().item() / u.delta.norm().item()
