import math

import pytest
import torch
from golden import dense, distance, load
from synthetic import SHAPES, adapters, changed, orthogonal

from osrm_exp.lora import LowRank, stack
from osrm_exp.merging import cart, iso_c, iso_cts, iso_cts_fixed_rank, tsv

F64 = torch.float64
SPACES = ["delta", "knots", "core", "core_balanced"]
EVERY = {
    "iso_c": lambda u, space="delta": iso_c(u, space=space, scaling=1.3),
    "iso_cts": lambda u, space="delta": iso_cts(
        u, space=space, common_space_fraction=0.6, scaling=1.3
    ),
    "iso_cts_fixed_rank": lambda u, space="delta": iso_cts_fixed_rank(
        u, space=space, target_rank=40, task_directions=1, scaling=1.3
    ),
    "tsv": lambda u, space="delta": tsv(
        u, space=space, components=None, isotropic=False, scaling=1.3
    ),
    "tsv_iso": lambda u, space="delta": tsv(
        u, space=space, components=None, isotropic=True, scaling=1.3
    ),
    "cart": lambda u, space="delta": cart(u, space=space, density=0.3, mu=0.5, scaling=1.3),
}
every = pytest.mark.parametrize("merge", EVERY.values(), ids=list(EVERY))
dtypes = pytest.mark.parametrize("dtype", [F64, torch.float32])


@dtypes
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", ["iso_c", "iso_c_unequal", "iso_c_shared_a", "iso_c_dense"])
def test_iso_c_golden(name, space, dtype):
    golden = load(name, dtype)
    golden.check(iso_c(golden.updates, space=space, scaling=golden.hyperparameters["lambda"]))


@dtypes
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", ["iso_cts_core", "iso_cts_dense"])
def test_iso_cts_golden(name, space, dtype):
    golden = load(name, dtype)
    options = golden.hyperparameters
    golden.check(
        iso_cts(
            golden.updates,
            space=space,
            common_space_fraction=options["common_space_fraction"],
            scaling=options["lambda"],
        )
    )


@dtypes
@pytest.mark.parametrize("space", SPACES)
def test_iso_cts_fixed_rank_golden(space, dtype):
    golden = load("iso_cts_fixed_rank", dtype)
    options = golden.hyperparameters
    golden.check(
        iso_cts_fixed_rank(
            golden.updates,
            space=space,
            target_rank=options["target_rank"],
            task_directions=options["task_directions"],
            scaling=options["lambda"],
        )
    )


@dtypes
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", ["tsv", "tsv_truncated_unequal", "core_tsv", "core_tsv_iso"])
def test_tsv_golden(name, space, dtype):
    golden = load(name, dtype)
    options = golden.hyperparameters
    golden.check(
        tsv(
            golden.updates,
            space=space,
            components=options["components_per_task"],
            isotropic=name.endswith("iso"),
            scaling=options["lambda"],
        )
    )


@dtypes
@pytest.mark.parametrize("name", ["cart", "core_cart"])
def test_cart_golden(name, dtype):
    golden = load(name, dtype)
    options = golden.hyperparameters
    golden.check(
        cart(
            golden.updates,
            space={"full": "delta", "core": "core"}[options["space"]],
            density=options["p"],
            mu=options["mu"],
            scaling=options["lambda"],
        )
    )


def test_iso_c_strengths_are_the_mean_over_the_rank_of_the_sum():
    updates = adapters((2, 1, 2))
    for module, update in iso_c(updates, space="delta", scaling=2.0).items():
        S = torch.linalg.svdvals(updates[module].delta.sum(0))[:5]
        got = torch.linalg.svdvals(dense(update))
        torch.testing.assert_close(got[:5], 2 * S.mean().expand(5))
        assert got[5:].max() < 1e-12


def test_iso_of_one_task_is_not_that_task():
    updates = adapters((3,))
    merged = iso_c(updates, space="delta", scaling=1.0)
    assert all(distance(merged[m], u.delta[0]) > 0.1 for m, u in updates.items())


def test_iso_cts_of_the_common_space_alone_is_iso_c():
    updates = adapters((2, 1, 2))
    other = iso_c(updates, space="delta", scaling=1.0)
    merged = iso_cts(updates, space="delta", common_space_fraction=1.0, scaling=1.0)
    assert all(distance(merged[m], other[m]) < 1e-12 for m in updates)


def test_iso_cts_ignores_a_task_that_does_not_adapt_the_module():
    updates = adapters((2, 2, 2))
    fewer = {m: stack(u.unstack()[:2]) for m, u in updates.items()}
    untrained = changed(updates, lambda t, u: u if t < 2 else LowRank(u.A, u.B * 1e-14))
    for name in ("iso_cts", "iso_cts_fixed_rank", "tsv"):
        merged, other = EVERY[name](untrained), EVERY[name](fewer)
        assert all(distance(merged[m], other[m]) < 1e-9 for m in updates)


def test_iso_cts_fixed_rank_has_that_rank():
    merged = iso_cts_fixed_rank(
        adapters((2, 2, 2)), space="delta", target_rank=4, task_directions=1, scaling=1.0
    )
    assert all(torch.linalg.matrix_rank(dense(u), rtol=1e-9) == 4 for u in merged.values())


def test_iso_cts_fixed_rank_refuses_more_tasks_than_rank():
    with pytest.raises(ValueError, match="target_rank 2"):
        iso_cts_fixed_rank(adapters(), space="delta", target_rank=2, task_directions=1, scaling=1.0)


def test_tsv_of_orthogonal_tasks_is_their_sum():
    updates = orthogonal()
    merged = tsv(updates, space="delta", components=None, isotropic=False, scaling=1.0)
    assert distance(merged["w"], updates["w"].delta.sum(0)) < 1e-12


def test_tsv_keeps_the_leading_components():
    updates = adapters((3,))
    merged = tsv(updates, space="delta", components=1, isotropic=False, scaling=1.0)
    for module, update in merged.items():
        U, S, Vh = torch.linalg.svd(updates[module].delta[0])
        assert distance(update, S[0] * torch.outer(U[:, 0], Vh[0])) < 1e-12


def test_cart_of_all_components_is_the_mean():
    updates = adapters((2, 1, 3))
    merged = cart(updates, space="core", density=1.0, mu=5.0, scaling=1.0)
    assert all(distance(merged[m], u.delta.mean(0)) < 1e-12 for m, u in updates.items())


@pytest.mark.parametrize("space", ["delta", "core"])
def test_cart_counts_in_its_space(space):
    updates = adapters((2, 1, 2))
    merged = cart(updates, space=space, density=0.3, mu=0.7, scaling=1.5)
    for module, update in updates.items():
        mean = update.delta.mean(0)
        k = math.ceil(0.3 * (min(update.shape) if space == "delta" else 5))
        expected = mean.clone()
        for delta in update.delta:
            U, S, Vh = torch.linalg.svd(delta - mean, full_matrices=False)
            expected += 0.7 * (U[:, :k] * S[:k]) @ Vh[:k]
        assert distance(merged[module], 1.5 * expected) < 1e-12


@every
@pytest.mark.parametrize("space", SPACES)
def test_the_same_number_in_every_space(merge, space):
    if merge is EVERY["cart"]:
        pytest.skip("counts in its space")
    updates = adapters((2, 1, 2))
    merged, other = merge(updates, space), merge(updates)
    assert all(distance(merged[m], other[m]) < 1e-9 for m in updates)


@every
def test_shared_a_is_stable_and_of_its_rank(merge):
    updates, g = adapters((2, 2, 2)), torch.Generator().manual_seed(3)
    updates = {m: LowRank(u.A[:1].expand_as(u.A).clone(), u.B) for m, u in updates.items()}

    def noisy(x):
        return x * (1 + 1e-13 * torch.randn(x.shape, generator=g, dtype=F64))

    moved = merge(changed(updates, lambda _, u: LowRank(noisy(u.A), noisy(u.B))))
    for module, update in merge(updates).items():
        assert distance(moved[module], update) < 1e-9
        assert torch.linalg.matrix_rank(dense(update), rtol=1e-6) == 2


@every
def test_thirty_two_tasks_overfill_a_module(merge):
    merged = merge(adapters((2,) * 32))
    for module, update in merged.items():
        assert dense(update).isfinite().all() and dense(update).norm() > 0
        assert update.rank <= min(SHAPES[module])


@every
def test_zero_and_absent_adapters(merge):
    updates = adapters((2, 0, 1))
    zeros = changed(updates, lambda _, u: LowRank(u.A, torch.zeros_like(u.B)))
    assert all(dense(u).isfinite().all() for u in merge(updates).values())
    assert all(not dense(u).any() for u in merge(zeros).values())
    assert all(not dense(u).any() for u in merge(adapters((0, 0))).values())


@every
def test_opposite_tasks_cancel_without_nan(merge):
    one = adapters((2,))
    updates = {m: stack([u.unstack()[0], u.unstack()[0] * -1.0]) for m, u in one.items()}
    assert all(dense(u).isfinite().all() for u in merge(updates).values())


def test_iso_cts_of_tasks_that_cancel_is_nothing():
    one = adapters((2,))["layer0.q"].unstack()[0]
    for seed in range(3):
        noise = 1e-9 * torch.randn(one.B.shape, generator=torch.Generator().manual_seed(seed))
        updates = {"w": stack([one, LowRank(one.A, -one.B + noise.to(one.B))])}
        merged = iso_cts(updates, space="delta", common_space_fraction=0.8, scaling=1.0)["w"]
        assert dense(merged).norm() < 1e-6 * one.delta.norm()


@pytest.mark.parametrize("rank", [1, 2])
def test_iso_cts_of_small_adapters_keeps_a_direction_of_every_task(rank):
    """Rounding would leave none, and iso_c under another name."""
    updates = adapters((rank,) * 3)
    merged = iso_cts(updates, space="delta", common_space_fraction=0.8, scaling=1.0)
    plain = iso_c(updates, space="delta", scaling=1.0)
    assert all(distance(merged[m], plain[m]) > 1e-3 for m in updates)
