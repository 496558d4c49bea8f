import sys

import pytest
import torch
from synthetic import adapters

from osrm_exp import merging, searchpath
from osrm_exp.lora import LowRank
from osrm_exp.merging import fisher, karcher, regmean
from osrm_exp.merging.api import configured
from osrm_exp.merging.contract import checked, upheld

REGMEAN = {"off_diagonal": 1.0, "ridge": 1e-6}


def test_a_method_sees_float32_at_least_and_what_came_comes_back():
    seen = {}

    def method(updates, /, *, scaling):
        seen.update(updates)
        return {m: stack.total() * scaling for m, stack in updates.items()}

    for given, inside in {
        torch.float16: torch.float32, torch.bfloat16: torch.float32,
        torch.float32: torch.float32, torch.float64: torch.float64,
    }.items():  # fmt: skip
        updates = {m: u.to(given) for m, u in adapters().items()}
        result = upheld(method)(updates, scaling=0.5)
        assert {update.dtype for update in result.values()} == {given}
        assert {stack.dtype for stack in seen.values()} == {inside}
    mixed = {"w": LowRank(torch.ones(1, 1, 3).bfloat16(), torch.ones(1, 2, 1))}
    assert upheld(method)(mixed, scaling=1.0)["w"].delta.tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str
)
def test_numbers_that_no_merge_is_right_in_are_refused(dtype):
    """An average in integers came back as zeros."""
    stack = LowRank(torch.ones(2, 1, 3).to(dtype), torch.ones(2, 4, 1).to(dtype))
    with pytest.raises(ValueError, match=f"the updates of w are {dtype}, .* give float32"):
        merging.average({"w": stack}, space="delta")


def test_a_result_that_is_not_finite_is_refused_by_module():
    """A sum of float16 updates is beyond float16, a scaling beyond float32."""
    large = {"w": LowRank(torch.ones(2, 1, 3), torch.full((2, 4, 1), 6e4))}
    halves = {"w": large["w"].to(torch.float16)}
    with pytest.raises(ValueError, match=r"the merge of w is not finite in torch\.float16"):
        dict(merging.task_arithmetic(halves, space="delta", scaling=3.0))
    with pytest.raises(ValueError, match=r"the merge of w is not finite in torch\.float32"):
        dict(merging.task_arithmetic(large, space="delta", scaling=1e38))


METHODS = sorted(name for name in vars(merging) if hasattr(getattr(merging, name), "is_upheld"))


def called(name, updates):
    """The method as it is called by its name, at its config's settings, with plain statistics."""
    config = next(
        one for one in map(configured, sorted(searchpath.files("merge")))
        if one.call.name.endswith(f":{name}")
    )  # fmt: skip
    given = {"gram": "in", "output_gram": "out", "fisher": "both", "losses": None}
    statistics = {}
    for keyword in config.statistics:
        if keyword == "gram_after":
            pytest.skip("asks for networks")
        of = given[keyword]
        sizes = {m: u.shape for m, u in updates.items()}
        one = {
            "in": lambda shape: torch.eye(shape[1]).double(),
            "out": lambda shape: torch.eye(shape[0]).double(),
            "both": lambda shape: torch.ones(shape).double(),
        }
        statistics[keyword] = (
            {m: torch.stack([one[of](s)] * 2) for m, s in sizes.items()}
            if of else torch.tensor([1.0, 2.0, 3.0])
        )  # fmt: skip
    method = getattr(merging, name)
    home = getattr(sys.modules[method.__module__], name)
    assert home is method  # by whichever way it is imported
    return dict(method(updates, **statistics, **config.call.options))


def parts(update):
    return [update.task(i) for i in range(2)] if update.sharing == "per_task" else [update]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_called_by_its_name_is_held_to_the_same(name):
    whole = adapters((2, 2))
    half = {m: u.to(torch.float16) for m, u in whole.items()}
    precise = {m: u.to(torch.float32) for m, u in half.items()}
    found, expected = called(name, half), called(name, precise)
    for module, update in found.items():
        assert update.dtype == torch.float16
        x = torch.ones(3, precise[module].shape[1])
        for one, right in zip(parts(update), parts(expected[module])):
            answers = [
                u.to(torch.float32).added(x, torch.zeros(3, u.shape[0])) for u in (one, right)
            ]
            torch.testing.assert_close(*answers, rtol=1e-2, atol=1e-2)
    module = next(iter(whole))
    A = whole[module].A.clone()
    A[1, 0, 0] = torch.nan
    broken = {**whole, module: LowRank(A, whole[module].B)}
    with pytest.raises(ValueError, match=f"the update of {module} of task 2 holds NaN"):
        called(name, broken)


def test_every_method_is_held():
    configs = {configured(name).call.name.partition(":")[2] for name in searchpath.files("merge")}
    assert configs <= set(METHODS)


@pytest.mark.parametrize(
    "wrong", [torch.ones(2, 3, 4), LowRank(torch.ones(1, 3), torch.ones(2, 1))]
)
def test_what_is_no_stack_is_one_sentence(wrong):
    with pytest.raises(ValueError, match="the updates of w are no stack of low-rank ones"):
        merging.average({"w": wrong}, space="delta")


def test_a_gram_is_symmetric():
    gram = torch.eye(3).repeat(2, 1, 1)
    assert checked("gram", "w", gram, 2, 3, 3) is gram
    gram[1, 0, 2] = 0.1
    with pytest.raises(
        ValueError, match=r"the gram of w of task 2 is not symmetric: give X\.T @ X"
    ):
        checked("gram", "w", gram, 2, 3, 3)
    with pytest.raises(ValueError, match=r"is \[2, 3, 3\], expected \[3, 3, 3\]"):
        checked("gram", "w", gram, 3, 3, 3)


@pytest.mark.parametrize("kind", ["gram", "output_gram", "fisher"])
def test_a_mean_of_squares_is_never_negative(kind):
    given = torch.eye(3).repeat(2, 1, 1)
    given[1, 2, 2] = -0.5
    with pytest.raises(ValueError, match=f"the {kind} of w of task 2 holds -0.5, and a mean of sq"):
        checked(kind, "w", given, 2, 3, 3)


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]])
def test_weights_whose_shares_mean_nothing_are_refused(weights):
    updates = adapters((2, 2))
    grams = {m: torch.eye(u.shape[1]).double().repeat(2, 1, 1) for m, u in updates.items()}
    fishers = {m: torch.ones(2, *u.shape).double() for m, u in updates.items()}
    for merge in (
        lambda: karcher(updates, max_iter=5, tol=1e-9, weights=weights),
        lambda: regmean(updates, grams, weights=weights, **REGMEAN),
        lambda: fisher(
            updates, fishers, weights=weights, normalize=True, floor=1e-6, flooring="all"
        ),
    ):
        with pytest.raises(ValueError, match=r"sum to zero|not all finite"):
            merge()
