import pytest
import torch
from synthetic import adapters

from osrm_exp.lora import LowRank
from osrm_exp.merging import fisher, karcher, regmean
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
        result = upheld(method, updates, scaling=0.5)
        assert {update.dtype for update in result.values()} == {given}
        assert {stack.dtype for stack in seen.values()} == {inside}
    mixed = {"w": LowRank(torch.ones(1, 1, 3).bfloat16(), torch.ones(1, 2, 1))}
    assert upheld(method, mixed, scaling=1.0)["w"].delta.tolist() == [[1.0] * 3] * 2


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
