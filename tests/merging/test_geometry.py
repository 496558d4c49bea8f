import pytest
import torch
from adapters import adapters, permuted, rank_of, regauged, repeated
from golden import dense, distance, load

from osrm_exp.lora import LowRank, stack
from osrm_exp.merging.geometry import (
    combine,
    inner_products,
    karcher,
    model_stock,
    row_products,
    slerp,
    task_weights,
)

METHODS = {
    "slerp": lambda u: slerp(u, t=0.3, dot_threshold=0.9995),
    "karcher": lambda u: karcher(u, max_iter=10, tol=1e-5, weights=None),
    "model_stock": lambda u: model_stock(u, filter_wise=False, clamp=False),
    "model_stock_filterwise": lambda u: model_stock(u, filter_wise=True, clamp=False),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


@both_dtypes
@pytest.mark.parametrize("name", ["slerp", "slerp_colinear"])
def test_slerp_golden(name, dtype):
    golden = load(name, dtype)
    golden.check(slerp(golden.updates, **golden.hyperparameters))


@both_dtypes
@pytest.mark.parametrize("name", ["karcher", "karcher_tight"])
def test_karcher_golden(name, dtype):
    golden = load(name, dtype)
    options = dict(golden.hyperparameters)
    weights = options.pop("weights")
    golden.check(
        karcher(golden.updates, **options, weights=None if weights == "uniform" else weights)
    )


@both_dtypes
@pytest.mark.parametrize("name", ["model_stock", "model_stock_filterwise"])
def test_model_stock_golden(name, dtype):
    golden = load(name, dtype)
    golden.check(model_stock(golden.updates, **golden.hyperparameters))


def test_products_equal_those_of_the_deltas():
    for update in adapters((2, 4, 0)).values():
        D = torch.stack([u.delta for u in update.unstack()])
        torch.testing.assert_close(inner_products(update), torch.einsum("tmn,smn->ts", D, D))
        torch.testing.assert_close(row_products(update), torch.einsum("tmn,smn->mts", D, D))


def test_combine_is_the_weighted_sum():
    update = adapters((2, 4, 1))["layer0.q"]
    weights = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    merged = combine(update, weights)
    assert merged.rank == 7
    assert distance(merged, torch.einsum("t,tmn->mn", weights, update.delta)) < 1e-14


@every_method
def test_one_task_keeps_its_adapter(method):
    updates = adapters((3,))
    for module, merged in method(updates).items():
        assert distance(merged, updates[module].delta[0]) < 1e-12


@every_method
def test_equal_adapters_give_the_adapter(method):
    updates = repeated(adapters(), 2)
    for module, merged in method(updates).items():
        assert distance(merged, updates[module].delta[0]) < 1e-12


@every_method
def test_depends_on_the_deltas_alone(method):
    updates = adapters((2, 4))
    other = method(regauged(updates))
    for module, merged in method(updates).items():
        assert distance(merged, other[module]) < 1e-10


@every_method
def test_rounding_noise_stays_rounding_noise(method):
    updates = adapters((2, 4))
    noisy = {m: LowRank(u.A * (1 + 1e-13), u.B * (1 - 2e-13), u.ranks) for m, u in updates.items()}
    other = method(noisy)
    for module, merged in method(updates).items():
        assert distance(merged, other[module]) < 1e-10


@every_method
@pytest.mark.parametrize("ranks", [(0, 3), (0, 0)])
def test_tasks_that_do_not_adapt_a_module(method, ranks):
    updates = adapters(ranks)
    for merged in method(updates).values():
        assert dense(merged).isfinite().all()
        assert rank_of(merged) <= sum(ranks)


@every_method
def test_low_rank_in_the_dtype_of_the_inputs(method):
    for merged in method(adapters((1, 2), dtype=torch.float32)).values():
        assert merged.A.dtype == merged.B.dtype == torch.float32
        assert merged.rank <= 3


@pytest.mark.parametrize("name", ["karcher", "model_stock", "model_stock_filterwise"])
def test_order_of_the_tasks_is_irrelevant(name):
    updates = adapters((2, 4, 3))
    other = METHODS[name](permuted(updates, (2, 0, 1)))
    for module, merged in METHODS[name](updates).items():
        assert distance(merged, other[module]) < 1e-12


@pytest.mark.parametrize("name", ["karcher", "model_stock", "model_stock_filterwise"])
def test_thirty_two_tasks(name):
    for merged in METHODS[name](adapters((2,) * 32)).values():
        assert dense(merged).isfinite().all()


def test_slerp_ends_at_the_tasks():
    updates = adapters((2, 3))
    for t in (0, 1):
        for module, merged in slerp(updates, t=float(t), dot_threshold=0.9995).items():
            assert distance(merged, updates[module].delta[t]) < 1e-12


def test_slerp_stays_on_the_sphere():
    unit = {
        m: u * (1 / u.delta.norm(dim=(1, 2))[:, None, None]) for m, u in adapters((2, 3)).items()
    }
    for merged in slerp(unit, t=0.4, dot_threshold=0.9995).values():
        assert dense(merged).norm().item() == pytest.approx(1)


def test_slerp_refuses_three_tasks():
    with pytest.raises(ValueError, match="two tasks, got 3"):
        slerp(adapters(), t=0.5, dot_threshold=0.9995)


def test_karcher_of_two_is_the_middle_of_their_arc():
    unit = {
        m: u * (1 / u.delta.norm(dim=(1, 2))[:, None, None]) for m, u in adapters((2, 3)).items()
    }
    middle = slerp(unit, t=0.5, dot_threshold=0.9995)
    for module, merged in karcher(unit, max_iter=50, tol=1e-12, weights=None).items():
        assert distance(merged, middle[module]) < 1e-12


def test_karcher_has_no_direction_of_descent():
    updates, weights = adapters((2, 3, 4)), torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    for module, merged in karcher(
        updates, max_iter=200, tol=1e-13, weights=weights.tolist()
    ).items():
        D = updates[module].delta
        units, mean = D / D.norm(dim=(1, 2))[:, None, None], dense(merged)
        assert mean.norm().item() == pytest.approx((weights @ D.norm(dim=(1, 2))).item())
        mean = mean / mean.norm()
        dots = (units * mean).sum((1, 2))
        arcs = dots.acos() / dots.acos().sin()
        tangent = torch.einsum("t,tmn->mn", weights * arcs, units - dots[:, None, None] * mean)
        assert tangent.norm() < 1e-10


def test_model_stock_shrinks_to_the_base_where_tasks_have_nothing_in_common():
    A, B = torch.eye(10, dtype=torch.float64)[:2], torch.randn(6, 2, dtype=torch.float64)
    orthogonal = stack([LowRank(A[:1], B[:, :1]), LowRank(A[1:], B[:, 1:])])
    for filter_wise in (True, False):
        merged = model_stock({"m": orthogonal}, filter_wise=filter_wise, clamp=True)["m"]
        assert dense(merged).norm() < 1e-14


def test_model_stock_turns_around_only_without_the_clamp():
    u, v = adapters((3, 3))["layer0.q"].unstack()
    u = LowRank(torch.cat([u.A, v.A]), torch.cat([u.B, -0.6 * v.B], 1))  # mostly against v
    opposed = {"m": stack([u, v])}
    mean = (u.delta + v.delta) / 2
    free = model_stock(opposed, filter_wise=False, clamp=False)["m"]
    assert (dense(free) * mean).sum() < 0
    assert not dense(model_stock(opposed, filter_wise=False, clamp=True)["m"]).any()


def test_weights_are_one_a_task():
    assert task_weights(None, 2) == [1, 1]
    with pytest.raises(ValueError, match="3 weights for 2 tasks"):
        task_weights([1, 2, 3], 2)


def test_karcher_of_tasks_that_cancel_is_nothing_in_any_order():
    one = adapters((2,))["layer0.q"].unstack()[0]
    for signs in ([1, -1], [-1, 1], [1, 1, -1, -1]):
        updates = {"w": stack([one * sign for sign in signs])}
        merged = karcher(updates, max_iter=50, tol=1e-9, weights=None)["w"]
        assert dense(merged).norm() < 1e-9 * one.delta.norm()
