"""Laws that every merge method obeys; a new file in conf/merge is held to them at once."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import pytest
import synthetic
import torch
from golden import dense, distance
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from synthetic import SHAPES, Prefix, adapters, changed
from torch import Tensor

from osrm_exp.lora import LowRank, Update, stack
from osrm_exp.record import build
from osrm_exp.spec import Merge

CONF = Path(__file__).parents[2] / "conf" / "merge"

# What a config may claim under `laws`: a law that not every method obeys, or that it breaks one.
CLAIMS = {
    "idempotent",  # at neutral settings, equal adapters give that adapter
    "two_tasks",  # it merges two tasks, no fewer and no more
    "ordered",  # the first task is another thing than the second
    "gauge_dependent",  # of coordinates that the deltas do not determine
    "ill_posed",  # gives weight to null vectors, which are arbitrary: no law on perturbed inputs
}


NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
every = pytest.mark.parametrize("name", NAMES)


@functools.cache
def method(name: str) -> Merge:
    config = OmegaConf.load(CONF / f"{name}.yaml")
    return build(Merge, OmegaConf.to_container(config, resolve=True), name)


def claims(name: str, law: str) -> bool:
    assert law in CLAIMS
    return law in method(name).laws


def statistics(name: str, updates: Mapping[str, LowRank]) -> dict:
    return synthetic.statistics(method(name), updates, tasks=len(next(iter(updates.values()))))


def merged(name: str, updates, given=None, **changed) -> dict[str, Update]:
    """Every module of a result, computed."""
    given = statistics(name, updates) if given is None else given
    return dict(method(name).with_(**changed)(updates, **given))


def tasks(name: str) -> tuple[int, ...]:
    return (2, 2) if claims(name, "two_tasks") else (2, 2, 2)


def apart(one: Mapping[str, Update], other: Mapping[str, Update]) -> float:
    """The largest distance of a module."""
    assert set(one) == set(other)
    return max(distance(one[module], other[module]) for module in one)


def is_finite(result: Mapping[str, Update], updates: Mapping[str, LowRank]) -> None:
    """One delta a module, or one a task, of the right shape, without NaN."""
    assert set(result) == set(updates)
    for module, update in result.items():
        delta = dense(update)
        assert delta.shape in (
            updates[module].shape,
            (len(updates[module]), *updates[module].shape),
        )
        assert delta.isfinite().all()


@every
def test_a_config_claims_laws_that_exist(name):
    assert set(method(name).laws) <= CLAIMS
    assert not claims(name, "idempotent") or method(name).neutral is not None


def one_sentence(error: ValueError) -> None:
    assert len(str(error)) > 20 and "\n" not in str(error)


@every
def test_one_task_returns_its_adapter_at_neutral_settings(name):
    if method(name).neutral is None:
        pytest.skip("has no neutral settings")
    updates = adapters(ranks=(2,))
    if claims(name, "two_tasks"):
        pytest.skip("needs two tasks")
    result = merged(name, updates, **method(name).neutral)
    for module, update in updates.items():
        assert distance(dense(result[module]).reshape(update.shape), update.delta[0]) < 1e-8


@every
def test_order_of_tasks_does_not_matter(name):
    if claims(name, "ordered"):
        pytest.skip("says that it depends on the order")
    if claims(name, "ill_posed"):
        pytest.skip("has null vectors in its result")
    updates, order = adapters(tasks(name)), torch.arange(len(tasks(name))).roll(1)
    given = statistics(name, updates)
    turned = {m: LowRank(u.A[order], u.B[order]) for m, u in updates.items()}
    result, other = merged(name, updates, given), merged(name, turned, permuted(given, order))
    for module, update in result.items():
        expected = dense(update)
        expected = expected[order] if expected.dim() == 3 else expected
        assert distance(other[module], expected) < 1e-8


def permuted(given: dict, order: Tensor) -> dict:
    def turn(value):
        if isinstance(value, Prefix):
            return Prefix(turn(value.grams))
        return {m: v[order] for m, v in value.items()} if isinstance(value, dict) else value[order]

    return {kind: turn(value) for kind, value in given.items()}


@every
def test_inputs_are_not_modified(name):
    updates, again = adapters(tasks(name)), adapters(tasks(name))
    merged(name, updates)
    for module, update in updates.items():
        assert torch.equal(update.A, again[module].A) and torch.equal(update.B, again[module].B)


@every
def test_same_inputs_give_the_same_result(name):
    updates = adapters(tasks(name))
    one, other = merged(name, updates), merged(name, updates)
    assert all(torch.equal(dense(one[m]), dense(other[m])) for m in updates)


@pytest.mark.parametrize("name", [name for name in NAMES if claims(name, "idempotent")])
def test_equal_adapters_give_that_adapter(name):
    one = adapters(ranks=(2,))
    updates = {m: stack(u.unstack() * len(tasks(name))) for m, u in one.items()}
    result = merged(name, updates, **method(name).neutral)
    for module, update in one.items():
        delta = dense(result[module])
        assert distance(delta, update.delta[0].expand_as(delta)) < 1e-8


@every
def test_unequal_ranks_are_merged_or_refused(name):
    updates = adapters((1, 3) if claims(name, "two_tasks") else (1, 3, 2))
    try:
        is_finite(merged(name, updates), updates)
    except ValueError as error:
        one_sentence(error)


@every
@pytest.mark.parametrize("count", [32, 100])
def test_many_tasks_are_merged(name, count):
    if claims(name, "two_tasks"):
        pytest.skip("takes two tasks")
    updates = adapters((1,) * count, dtype=torch.float32)
    try:
        is_finite(merged(name, updates), updates)
    except ValueError as error:
        assert "of 100 tasks" in str(error)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_merged_in_float32_and_given_back(name, dtype):
    half = {m: u.to(dtype) for m, u in adapters(tasks(name)).items()}
    given = statistics(name, half)
    result = merged(name, half, given)
    expected = merged(name, {m: u.to(torch.float32) for m, u in half.items()}, given)
    assert all(update.dtype == dtype for update in result.values())
    assert apart({m: dense(u).float() for m, u in result.items()}, expected) < 1e-2


@every
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_a_factor_that_is_not_finite_is_refused_by_module_and_task(name, value, factor):
    updates, module = adapters(tasks(name)), "layer1.v"
    given = statistics(name, updates)
    getattr(updates[module], factor)[1, 0, 0] = value
    with pytest.raises(ValueError, match=rf"the update of {module} of task 2 holds NaN") as caught:
        merged(name, updates, given)
    one_sentence(caught.value)


@every
def test_a_statistic_that_is_not_finite_is_refused(name):
    updates = adapters(tasks(name))
    for keyword, values in statistics(name, updates).items():
        spoiled = getattr(values, "grams", values)
        tensor = spoiled["layer1.v"] if isinstance(spoiled, dict) else spoiled
        tensor[-1] = torch.nan
        with pytest.raises(ValueError, match=r"NaN|not all finite") as caught:
            merged(name, updates, {**statistics(name, updates), keyword: values})
        one_sentence(caught.value)


@every
def test_no_task_is_lost_to_its_split_into_factors(name):
    """`A * 1e4, B / 1e4` in one task and the inverse in another are the same deltas."""
    if claims(name, "gauge_dependent") or claims(name, "ill_posed"):
        pytest.skip("is no function of the deltas alone")
    if method(name).space == "factors":
        pytest.skip("acts on the factors")
    updates, scale = adapters(tasks(name)), {0: 1e4, 1: 1e-4}

    def far(t, u):
        return LowRank(u.A * scale.get(t, 1.0), u.B / scale.get(t, 1.0))

    given = statistics(name, updates)
    assert apart(merged(name, changed(updates, far), given), merged(name, updates, given)) < 1e-8


@every
def test_nothing_trained_is_nothing_merged(name):
    updates = changed(adapters(tasks(name)), lambda _, u: LowRank(u.A, torch.zeros_like(u.B)))
    result = merged(name, updates)
    is_finite(result, updates)
    assert all(not dense(update).any() for update in result.values())


@every
def test_a_task_that_does_not_adapt_a_module_is_a_task_of_zeros(name):
    """Rank 0 and `B = 0` are the same delta."""
    if method(name).space == "factors":
        pytest.skip("acts on the factors")
    updates, first = adapters(tasks(name)), next(iter(SHAPES))

    def without(cut):
        part = changed({first: updates[first]}, lambda t, u: cut(u) if t == 1 else u)
        return merged(name, {**updates, **part})

    zeros = without(lambda u: LowRank(u.A, torch.zeros_like(u.B)))
    is_finite(zeros, updates)
    try:
        absent = without(lambda u: LowRank(u.A[:0], u.B[:, :0]))
    except ValueError as error:
        one_sentence(error)
    else:
        is_finite(absent, updates)
        if not claims(name, "gauge_dependent"):
            assert apart(absent, zeros) < 1e-8


@every
def test_float32_is_close_to_float64(name):
    if claims(name, "ill_posed"):
        pytest.skip("has null vectors in its result")
    updates = adapters(tasks(name))
    single = {m: u.to(torch.float32) for m, u in updates.items()}
    given = statistics(name, updates)
    assert apart(merged(name, single, given), merged(name, updates, given)) < 1e-4
    for update in merged(name, single, given).values():
        assert update.dtype == torch.float32


@every
def test_a_low_rank_result_has_at_most_the_sum_of_the_ranks(name):
    updates = adapters(tasks(name))
    for module, update in merged(name, updates).items():
        if isinstance(update, LowRank):
            assert update.rank <= sum(updates[module].ranks)


@every
def test_the_split_into_factors_matters_where_a_config_says_so(name):
    if claims(name, "ill_posed"):
        pytest.skip("has null vectors in its result")
    if method(name).space == "factors":
        pytest.skip("acts on the factors")
    updates, g = adapters(tasks(name)), torch.Generator().manual_seed(2)

    def split(t, u):
        G = torch.randn(u.rank, u.rank, generator=g, dtype=u.A.dtype) + 3 * torch.eye(u.rank)
        return LowRank(torch.linalg.inv(G) @ u.A, u.B @ G)

    given = statistics(name, updates)
    moved = apart(merged(name, changed(updates, split), given), merged(name, updates, given))
    assert (moved > 1e-8) == claims(name, "gauge_dependent")


@every
@pytest.mark.parametrize("shared", [False, True], ids=["own A", "shared A"])
def test_null_directions_have_no_say(name, shared):
    """Noise of 1e-13 turns null directions anywhere, and moves the result by as little."""
    updates, g = adapters(tasks(name)), torch.Generator().manual_seed(3)
    if shared:
        updates = {m: LowRank(u.A[:1].expand_as(u.A).clone(), u.B) for m, u in updates.items()}

    def noisy(x: Tensor) -> Tensor:
        return x * (1 + 1e-13 * torch.randn(x.shape, generator=g, dtype=x.dtype))

    given = statistics(name, updates)
    result = merged(name, updates, given)
    if not any(isinstance(update, LowRank) for update in result.values()):
        pytest.skip("is dense")
    moved = merged(name, changed(updates, lambda _, u: LowRank(noisy(u.A), noisy(u.B))), given)
    is_finite(result, updates)
    assert apart(moved, result) < 1e-8


@every
@given(
    seed=st.integers(0, 999),
    ranks=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_any_adapters_are_merged_or_refused(name, seed, ranks, shape):
    updates = adapters(tuple(ranks), seed, {"w": shape})
    try:
        is_finite(merged(name, updates), updates)
    except ValueError as error:
        one_sentence(error)
