import pytest
import torch
from golden import load

from osrm_exp.merging import consensus, emr, tall_mask

BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


@BOTH
@pytest.mark.parametrize("name", ["emr_global", "emr_per_tensor"])
def test_emr_is_the_released_one(name, dtype):
    golden = load(name, dtype)
    golden.check(emr(golden.updates, space="delta", rescaler=golden.hyperparameters["rescaler"]))


@BOTH
def test_tall_mask_is_the_released_one(dtype):
    golden = load("tall_mask", dtype)
    threshold = golden.hyperparameters["mask_lambda"]
    golden.check(tall_mask(golden.updates, space="delta", mask_threshold=threshold))


@BOTH
def test_consensus_is_the_released_one(dtype):
    golden = load("consensus", dtype)
    h = golden.hyperparameters
    own = {"mask_threshold": h["mask_lambda"], "k": h["k"], "scaling": h["lambda"]}
    golden.check(consensus(golden.updates, space="delta", **own))
