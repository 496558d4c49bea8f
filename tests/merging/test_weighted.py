import pytest
import torch
from golden import load

from osrm_exp.lora import truncate
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
    golden.check({m: truncate(update, h["svd_rank"])[0] for m, update in merged.items()})


@BOTH
def test_peft_dense_prune_is_pefts_before_its_truncation(dtype):
    golden = load("peft_magnitude_prune_svd", dtype)
    h = golden.hyperparameters
    own = {"density": h["density"], "weights": h["weights"]}
    merged = peft_dense_prune(golden.updates, space="delta", scaling=1.0, **own)
    golden.check({m: truncate(update, h["svd_rank"])[0] for m, update in merged.items()})
