import pytest
import torch
from adapters import SHAPES, adapters, grams, permuted, regauged, repeated
from golden import distance, load

from osrm_exp.merging.curvature import fisher, mats
from osrm_exp.merging.regmean import regmean

DEFAULTS = dict(weights=None, normalize=True, floor=1e-6, flooring="all")
SOLVED = dict(scaling=0.3, iterations=600, tol=1e-12)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def fishers(tasks, seed=2):
    g = torch.Generator().manual_seed(seed)
    return {m: torch.rand(tasks, *shape, generator=g).double() ** 4 for m, shape in SHAPES.items()}


def output_grams(tasks, seed=4):
    g = torch.Generator().manual_seed(seed)
    draw = {m: torch.randn(tasks, 40, n, generator=g).double() for m, (n, _) in SHAPES.items()}
    return {module: X.mT @ X / 40 for module, X in draw.items()}


@both_dtypes
@pytest.mark.parametrize(
    "name", ["fisher", "fisher_favor_target", "fisher_mergelm", "fisher_unnormalised"]
)
def test_fisher_golden(name, dtype):
    golden = load(name, dtype)
    options, flooring = golden.hyperparameters, "all"
    if "additive_floor" in options:
        flooring = "add"
    elif "first" in options["floor_on"]:
        flooring = "first"
    golden.check(
        fisher(
            golden.updates,
            golden.tensors["fisher"],
            weights=options["coefficients"],
            normalize=options["normalize"],
            floor=options.get("additive_floor", options.get("floor")),
            flooring=flooring,
        )
    )


def check_mean(updates, values, expected, tolerance=1e-12, **options):
    merged = fisher(updates, values, **{**DEFAULTS, **options})
    for module, update in updates.items():
        assert distance(merged[module], expected(update.delta)) < tolerance


@pytest.mark.parametrize("flooring", ["all", "first", "add"])
@pytest.mark.parametrize("normalize", [True, False])
def test_equal_fishers_give_the_mean(normalize, flooring):
    same = {m: F[:1].expand(3, -1, -1) for m, F in fishers(1).items()}
    options = dict(normalize=normalize, flooring=flooring, floor=0.0)
    check_mean(adapters((2, 3, 4)), same, lambda D: D.mean(0), **options)


def test_a_task_that_alone_has_fisher_keeps_its_adapter():
    only = {m: F * torch.tensor([0.0, 1.0, 0.0])[:, None, None] for m, F in fishers(3).items()}
    for normalize in (True, False):
        check_mean(adapters(), only, lambda D: D[1], normalize=normalize, floor=0.0)


def test_no_fisher_at_all_gives_the_mean():
    none = {m: F * 0 for m, F in fishers(3).items()}
    for floor in (0.0, 1e-6):
        for flooring in ("all", "add"):
            check_mean(adapters(), none, lambda D: D.mean(0), floor=floor, flooring=flooring)


def test_the_size_of_all_fishers_is_irrelevant():
    updates, values = adapters(), fishers(3)
    expected = fisher(updates, values, **{**DEFAULTS, "floor": 0.0})
    for factor in (1e-9, 1e6):
        scaled = {m: F * factor for m, F in values.items()}
        merged = fisher(updates, scaled, **{**DEFAULTS, "floor": 0.0})
        for module in updates:
            assert distance(merged[module], expected[module]) < 1e-12


def test_normalised_tasks_weigh_alike_however_large_their_fisher():
    updates, values = adapters(), fishers(3)
    louder = {m: F * torch.tensor([1.0, 1e4, 1e-3])[:, None, None] for m, F in values.items()}
    expected = fisher(updates, values, **{**DEFAULTS, "floor": 0.0})
    merged = fisher(updates, louder, **{**DEFAULTS, "floor": 0.0})
    for module in updates:
        assert distance(merged[module], expected[module]) < 1e-12


def test_tiny_float32_fishers_do_not_underflow():
    updates = {m: u.to(torch.float32) for m, u in adapters().items()}
    tiny = {m: (F * 1e-30).float() for m, F in fishers(3).items()}
    expected = fisher(adapters(), fishers(3), **{**DEFAULTS, "floor": 0.0})
    merged = fisher(updates, tiny, **{**DEFAULTS, "floor": 0.0})
    for module in updates:
        assert merged[module].dtype == torch.float32
        assert distance(merged[module], expected[module]) < 1e-5


@pytest.mark.parametrize("flooring", ["all", "first", "add"])
def test_one_task_keeps_its_adapter(flooring):
    check_mean(adapters((3,)), fishers(1), lambda D: D[0], flooring=flooring)


def test_fisher_does_not_depend_on_the_factors_or_the_order():
    updates, values, order = adapters((2, 3, 4)), fishers(3), [1, 2, 0]
    merged = fisher(updates, values, **DEFAULTS)
    regauge = fisher(regauged(updates), values, **DEFAULTS)
    moved = {m: F[order] for m, F in values.items()}
    reorder = fisher(permuted(updates, order), moved, **DEFAULTS)
    for module in updates:
        assert distance(regauge[module], merged[module]) < 1e-10
        assert distance(reorder[module], merged[module]) < 1e-12


def test_absent_tasks_count_as_no_change():
    values = {m: torch.ones_like(F) for m, F in fishers(4).items()}
    check_mean(adapters((3, 0, 2, 0)), values, lambda D: D.mean(0))


def test_fisher_of_thirty_two_tasks():
    updates, values = adapters((1,) * 32), fishers(32)
    merged = fisher(updates, values, **DEFAULTS)
    assert list(merged) == list(updates)
    assert all(merged[module].delta.isfinite().all() for module in merged)


def test_fisher_names_what_is_wrong():
    with pytest.raises(ValueError, match="flooring is 'both'"):
        fisher(adapters(), fishers(3), **{**DEFAULTS, "flooring": "both"})
    with pytest.raises(ValueError, match=r"fisher of layer0\.q is \[2, 12, 10\]"):
        fisher(adapters(), fishers(2), **{**DEFAULTS, "normalize": False})["layer0.q"]


def test_mats_solves_its_equation():
    updates, inner, outer = adapters((2, 4, 3)), grams(3), output_grams(3)
    merged = mats(updates, inner, outer, **SOLVED)
    for module, update in updates.items():
        G, O, D = inner[module], outer[module], update.delta  # noqa: E741
        system = sum(torch.kron(o, g) for o, g in zip(O, G))
        target = sum(o @ d @ g for o, d, g in zip(O, D, G)).flatten()
        expected = torch.linalg.solve(system, target).view_as(D[0])
        assert distance(merged[module], expected) < 1e-9


def test_mats_is_regmean_where_all_outputs_count_alike():
    updates, inner = adapters(), grams(3)
    same = {m: torch.eye(n).expand(3, n, n) for m, (n, _) in SHAPES.items()}
    expected = regmean(updates, inner, off_diagonal=1.0, ridge=0.0, weights=None)
    merged = mats(updates, inner, same, **SOLVED)
    for module in updates:
        assert distance(merged[module], expected[module]) < 1e-10


def test_every_step_of_mats_comes_closer():
    """Conjugate gradients shrink the error in the norm of the system, step by step."""
    updates, inner, outer = adapters(), grams(3), output_grams(3)
    solution = mats(updates, inner, outer, **SOLVED)
    for module in updates:
        errors = []
        for iterations in (0, 1, 2, 5, 10, 20):
            short = {**SOLVED, "iterations": iterations}
            E = mats(updates, inner, outer, **short)[module].delta - solution[module].delta
            products = [o @ E @ g for o, g in zip(outer[module], inner[module])]
            errors.append((E * sum(products)).sum().item())
        assert errors == sorted(errors, reverse=True)


def test_mats_starts_at_task_arithmetic_and_stays_where_experts_agree():
    updates, inner, outer = adapters(), grams(3), output_grams(3)
    start = mats(updates, inner, outer, scaling=0.3, iterations=0, tol=0.0)
    same = repeated(updates, 3)
    agreed = mats(same, inner, outer, scaling=1 / 3, iterations=50, tol=1e-10)
    for module, update in updates.items():
        assert distance(start[module], 0.3 * update.delta.sum(0)) < 1e-14
        assert distance(agreed[module], update.delta[0]) < 1e-10


def test_mats_of_one_task_of_none_and_of_many():
    updates = adapters((3,))
    one = mats(updates, grams(1), output_grams(1), scaling=1.0, iterations=100, tol=1e-8)
    none = mats(adapters((0, 0)), grams(2), output_grams(2), **SOLVED)
    many = mats(
        adapters((1,) * 32), grams(32), output_grams(32), scaling=0.3, iterations=5, tol=0.0
    )
    for module in updates:
        assert distance(one[module], updates[module].delta[0]) < 1e-12
        assert not none[module].delta.any()
        assert many[module].delta.isfinite().all()


def test_mats_survives_singular_moments():
    """With fewer rows than features the system is singular but consistent."""
    updates = adapters((2, 3))
    merged = mats(updates, grams(2, rows=3), output_grams(2), **SOLVED)
    assert all(merged[module].delta.isfinite().all() for module in updates)
