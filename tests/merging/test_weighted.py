import pytest
import torch
from golden import load

from osrm_exp.lora import LowRank
from osrm_exp.merging import breadcrumbs, peft_dense_prune, peft_dense_ties, ties_mergekit

BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


@BOTH
def test_ties_mergekit_is_mergekits(dtype):
    golden = load("ties_mergekit", dtype)
    h = golden.hyperparameters
    own = {k: h[k] for k in ("density", "weights", "normalize")}
    golden.check(ties_mergekit(golden.updates, space="delta", scaling=h["lambda"], **own))


@BOTH
@pytest.mark.parametrize(("name", "elect"), [("breadcrumbs", False), ("breadcrumbs_ties", True)])
def test_breadcrumbs_are_mergekits(name, elect, dtype):
    golden = load(name, dtype)
    h = golden.hyperparameters
    own = {k: h[k] for k in ("density", "gamma", "weights", "normalize")}
    golden.check(
        breadcrumbs(golden.updates, space="delta", elect=elect, scaling=h["lambda"], **own)
    )


@BOTH
@pytest.mark.parametrize("name", ["peft_ties_svd", "peft_ties_svd_unequal"])
def test_peft_dense_ties_is_pefts_before_its_truncation(name, dtype):
    golden = load(name, dtype)
    h = golden.hyperparameters
    merged = peft_dense_ties(
        golden.updates,
        space="delta",
        density=h["density"],
        majority_sign=h.get("majority_sign_method", "total"),
        weights=h["weights"],
        scaling=1.0,
    )
    golden.check({m: update.truncate(h["svd_rank"]) for m, update in merged.items()})


@BOTH
def test_peft_dense_prune_is_pefts_before_its_truncation(dtype):
    golden = load("peft_magnitude_prune_svd", dtype)
    h = golden.hyperparameters
    own = {"density": h["density"], "weights": h["weights"]}
    merged = peft_dense_prune(golden.updates, space="delta", scaling=1.0, **own)
    golden.check({m: update.truncate(h["svd_rank"]) for m, update in merged.items()})


def one_row(*tasks: list[float]) -> dict[str, LowRank]:
    """Tasks with the given entries."""
    return {"w": LowRank(torch.tensor(tasks)[:, None], torch.ones(len(tasks), 1, 1))}


def test_ties_mergekit_elects_with_the_weights_and_divides_by_those_that_agree():
    updates = one_row([4.0, -2.0, 1.0], [-6.0, -4.0, -1.0])
    own = {"space": "delta", "density": 1.0, "scaling": 1.0, "weights": [2.0, 1.0]}
    #  2 * 4 beats 6;  (2 * 2 + 4) / 3;  2 * 1 beats 1
    normalized = ties_mergekit(updates, normalize=True, **own)["w"].delta
    assert torch.allclose(normalized, torch.tensor([[4.0, -8 / 3, 1.0]]))
    assert ties_mergekit(updates, normalize=False, **own)["w"].delta.tolist() == [[8.0, -8.0, 2.0]]


def test_breadcrumbs_drop_both_ends():
    updates = one_row([1.0, -2.0, 3.0, -4.0, 5.0])
    own = {"space": "delta", "elect": False, "weights": None, "normalize": False, "scaling": 2.0}
    merged = breadcrumbs(updates, density=0.4, gamma=0.2, **own)["w"].delta
    assert merged.tolist() == [[0.0, 0.0, 6.0, -8.0, 0.0]]
    untouched = breadcrumbs(updates, density=1.0, gamma=0.0, **own)["w"].delta
    assert untouched.tolist() == [[2.0, -4.0, 6.0, -8.0, 10.0]]
    with pytest.raises(ValueError, match=r"density 0.1 and gamma 0.0 keep 0"):
        _ = breadcrumbs(updates, density=0.1, gamma=0.0, **own)["w"].delta


@pytest.mark.parametrize(
    ("majority_sign", "expected"),
    [("total", [[-5.0 * 0.5]]), ("frequency", [[(1.0 * 1 + 2.0 * 2) / 2]])],
)
def test_peft_elects_without_weights_and_divides_by_the_count(majority_sign, expected):
    updates = one_row([1.0], [2.0], [-5.0])
    own = {"space": "delta", "density": 1.0, "scaling": 1.0, "weights": [1.0, 2.0, 0.5]}
    assert (
        peft_dense_ties(updates, majority_sign=majority_sign, **own)["w"].delta.tolist() == expected
    )


def test_weights_are_one_a_task():
    with pytest.raises(ValueError, match="1 weights for 2 tasks"):
        own = {"space": "delta", "density": 1.0, "scaling": 1.0, "weights": [1.0]}
        peft_dense_prune(one_row([1.0], [2.0]), **own)["w"]
