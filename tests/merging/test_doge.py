from itertools import pairwise

import pytest
import torch
from golden import distance, load
from synthetic import adapters, changed

from osrm_exp.lora import LowRank, stack
from osrm_exp.merging import doge_ta, doge_ta_sgd
from osrm_exp.merging.doge import adam, balancing, descent, loss, shared_space

F64 = torch.float64
OPTIONS = dict(eta=0.07, density=0.3, subspace=3, iterations=50, lr=1e-3)


def module(ranks=(2, 3, 1), shape=(9, 8)):
    """A stack, its weights and its shared space."""
    update = adapters(ranks, shapes={"w": shape})["w"]
    return update, balancing(update, 0.7), shared_space(update, 3)


def row_loss(change, deltas, weights):
    """The definition, on dense deltas."""
    merged = sum(w * (D + change) for w, D in zip(weights, deltas))
    return sum((((D * (D - merged)).sum(1)) ** 2).sum() for D in deltas)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_golden(dtype):
    golden = load("doge_ta", dtype)
    options = golden.hyperparameters
    assert options["optimizer"] == "adam"
    golden.check(
        doge_ta(
            golden.updates,
            eta=options["eta"],
            density=options["k_percent"] / 100,
            subspace=options["subspace"],
            iterations=options["iterations"],
            lr=options["lr"],
        )
    )


def test_stages_golden():
    golden = load("doge_ta")
    options = golden.hyperparameters
    for name, update in golden.updates.items():
        Q = shared_space(update, options["subspace"])
        assert distance(Q @ Q.mT, golden.tensors["projector"][name]) < 1e-9
        weights = balancing(update, options["eta"])
        change = adam(update, weights, Q, iterations=options["iterations"], lr=options["lr"])
        assert distance(change, golden.tensors["modification"][name]) < 1e-6


def test_weighted_deltas_have_the_norm_eta():
    update, weights, _ = module()
    norms = weights * update.delta.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 0.7))


@pytest.mark.parametrize("method", [doge_ta, doge_ta_sgd])
def test_without_steps_and_trim_it_is_task_arithmetic_of_equal_norms(method):
    updates = adapters((2, 3, 1))
    merged = method(updates, **{**OPTIONS, "density": 1.0, "iterations": 0})
    for name, update in updates.items():
        units = update.delta / update.delta.flatten(1).norm(dim=1)[:, None, None]
        assert distance(merged[name], 0.07 * units.sum(0)) < 1e-12


@pytest.mark.parametrize("method", [doge_ta, doge_ta_sgd])
def test_trim_is_over_all_modules_and_of_the_raw_deltas(method):
    updates = adapters((2, 3, 1))
    merged = method(updates, **{**OPTIONS, "iterations": 0})
    flat = torch.cat([u.delta.flatten(1) for u in updates.values()], dim=1).abs()
    kept = int(flat.shape[1] * 0.3) + 1
    threshold = flat.topk(kept, dim=1).values[:, -1, None, None]
    for name, update in updates.items():
        weights = balancing(update, 0.07)[:, None, None]
        expected = (weights * update.delta * (update.delta.abs() >= threshold - 1e-12)).sum(0)
        assert distance(merged[name], expected) < 1e-12


def test_loss_is_the_definition():
    update, weights, _ = module()
    change = torch.randn(9, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
    expected = row_loss(change, update.delta, weights)
    torch.testing.assert_close(loss(update, weights, change), expected)


def test_descent_takes_the_projected_gradient():
    """Its first step against autograd on the dense definition."""
    update, weights, Q = module()
    change = torch.zeros(9, 8, dtype=F64, requires_grad=True)
    row_loss(change, update.delta, weights).backward()
    expected = -(change.grad - Q @ (Q.mT @ change.grad))
    step = descent(update, weights, Q, iterations=1, lr=1.0).delta
    assert distance(step / step.norm(), expected / expected.norm()) < 1e-10


def test_descent_lowers_the_loss_every_step_and_stays_out_of_the_shared_space():
    update, weights, Q = module()
    losses = []
    for iterations in range(0, 60, 5):
        change = descent(update, weights, Q, iterations=iterations, lr=1.0)
        losses.append(loss(update, weights, change.delta).item())
        assert (Q.mT @ change.delta).norm() <= 1e-12 * max(1, change.delta.norm())
    assert all(later < before for before, later in pairwise(losses))
    assert change.rank == 6


def test_descent_on_deltas_of_any_size_takes_the_same_steps():
    update, _, Q = module()
    change = descent(update, balancing(update, 0.7), Q, iterations=20, lr=1.0)
    ten = update * 10.0
    larger = descent(ten, balancing(ten, 7.0), Q, iterations=20, lr=1.0)
    assert distance(larger.delta, 10 * change.delta) < 1e-10


def test_adam_enters_the_shared_space():
    update, weights, Q = module()
    change = adam(update, weights, Q, iterations=50, lr=1e-3)
    assert (Q.mT @ change).norm() > 0.01 * change.norm()
    assert loss(update, weights, change) < loss(update, weights, torch.zeros_like(change))


def test_shared_space_ends_at_the_rank():
    update = adapters((1, 1), shapes={"w": (12, 12)})["w"]
    assert shared_space(update, 2).shape == (12, 2)
    same = stack([update.unstack()[0]] * 2)
    assert shared_space(same, 2).shape == (12, 1)


@pytest.mark.parametrize("method", [doge_ta, doge_ta_sgd])
def test_untrained_and_absent_tasks_have_no_say(method):
    updates = adapters((2, 2, 2))
    fewer = {m: stack(u.unstack()[:2]) for m, u in updates.items()}
    untrained = changed(updates, lambda t, u: u if t < 2 else LowRank(u.A, u.B * 0))
    absent = changed(updates, lambda t, u: u if t < 2 else LowRank(u.A[:0], u.B[:, :0]))
    expected = method(fewer, **OPTIONS)
    for given in (untrained, absent):
        merged = method(given, **OPTIONS)
        assert all(distance(merged[m], expected[m]) < 1e-9 for m in updates)


@pytest.mark.parametrize("method", [doge_ta, doge_ta_sgd])
def test_thirty_two_tasks(method):
    for update in method(adapters((2,) * 32), **OPTIONS).values():
        assert update.delta.isfinite().all() and update.delta.norm() > 0
