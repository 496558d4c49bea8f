import pytest
import torch
from golden import dense, distance, load
from synthetic import adapters, changed, orthogonal

from osrm_exp.lora import LowRank, stack
from osrm_exp.merging import wudi, wudi_adam

F64 = torch.float64
WIDE = {"w": (12, 14)}
ADAM = dict(lr=1e-5, iterations=300, betas=(0.9, 0.999), eps=1e-8, scaling=1.0)
dtypes = pytest.mark.parametrize("dtype", [F64, torch.float32])


def loss(X, deltas):
    return sum(((X - D) @ D.mT).norm() ** 2 / D.norm() ** 2 for D in deltas)


@dtypes
@pytest.mark.parametrize("space", ["delta", "knots", "core"])
@pytest.mark.parametrize("name", ["wudi_closed", "wudi_closed_unequal"])
def test_closed_form_golden(name, space, dtype):
    golden = load(name, dtype)
    golden.check(wudi(golden.updates, space=space, scaling=golden.hyperparameters["lambda"]))


@dtypes
def test_adam_golden(dtype):
    golden = load("wudi_adam", dtype)
    options = dict(golden.hyperparameters)
    assert options.pop("init") == "sum"
    golden.check(wudi_adam(golden.updates, scaling=options.pop("lambda"), **options))


def test_closed_form_equals_the_published_formula():
    updates = adapters((1, 3, 2), shapes=WIDE)
    deltas = updates["w"].delta
    grams = [D.mT @ D / D.norm() ** 2 for D in deltas]
    left = sum(D @ G for D, G in zip(deltas, grams))
    expected = left @ torch.linalg.pinv(sum(grams), rtol=1e-9, hermitian=True)
    assert distance(wudi(updates, space="delta", scaling=1.0)["w"], expected) < 1e-9


@pytest.mark.parametrize("ranks", [(2, 2, 2), (6, 5, 7)], ids=["solvable", "overfull"])
def test_closed_form_is_the_minimum(ranks):
    updates, g = adapters(ranks, shapes=WIDE), torch.Generator().manual_seed(0)
    deltas = updates["w"].delta
    X = dense(wudi(updates, space="delta", scaling=1.0)["w"])
    lowest = loss(X, deltas)
    if sum(ranks) <= 14:
        assert lowest < 1e-20
    assert lowest < loss(deltas.sum(0), deltas)
    for _ in range(10):
        step = 1e-3 * torch.randn(X.shape, generator=g, dtype=F64)
        assert loss(X + step, deltas) > lowest


def test_tasks_with_orthogonal_rows_are_summed():
    updates = orthogonal()
    merged = wudi(updates, space="delta", scaling=1.0)
    assert distance(merged["w"], updates["w"].delta.sum(0)) < 1e-12


def test_untrained_task_has_no_say():
    updates = adapters((2, 2, 2))
    fewer = {m: stack(u.unstack()[:2]) for m, u in updates.items()}
    for size in (0.0, 1e-14):
        untrained = changed(updates, lambda t, u, s=size: u if t < 2 else LowRank(u.A, u.B * s))
        merged, other = (wudi(u, space="delta", scaling=1.0) for u in (untrained, fewer))
        assert all(distance(merged[m], other[m]) < 1e-9 for m in updates)


def test_thirty_two_tasks():
    for update in wudi(adapters((2,) * 32), space="delta", scaling=1.0).values():
        assert dense(update).isfinite().all() and dense(update).norm() > 0


def test_adam_of_one_task_does_not_move():
    updates = adapters((3,))
    merged = wudi_adam(updates, **{**ADAM, "lr": 0.1})
    assert all(torch.equal(merged[m].delta, u.unstack()[0].delta) for m, u in updates.items())


def test_adam_walks_from_the_sum_to_the_minimum_and_leaves_the_span():
    updates = adapters((1, 2), shapes={"w": (7, 6)})
    deltas = updates["w"].delta
    start = wudi_adam(updates, **{**ADAM, "iterations": 0})["w"].delta
    torch.testing.assert_close(start, deltas.sum(0))
    end = wudi_adam(updates, **{**ADAM, "lr": 1e-2, "iterations": 1500})["w"].delta
    assert loss(end, deltas) < 1e-4 * loss(start, deltas)
    assert torch.linalg.matrix_rank(end, rtol=1e-6) > 3


def test_adam_gradient_is_that_of_the_loss():
    """One step has the sign of the gradient, which autograd gives independently."""
    updates = adapters((1, 2, 0), shapes={"w": (7, 6)})
    deltas = updates["w"].delta[:2]
    X = deltas.sum(0).requires_grad_()
    loss(X, deltas).backward()
    one = wudi_adam(updates, **{**ADAM, "lr": 1e-3, "iterations": 1})["w"].delta
    torch.testing.assert_close((one - deltas.sum(0)) / 1e-3, -X.grad.sign(), rtol=1e-4, atol=1e-4)
