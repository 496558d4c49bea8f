import pytest
import torch
from golden import load

from osrm_exp.merging import ties

BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
PLAIN = {
    "space": "delta",
    "density": 0.2,
    "granularity": "global",
    "counting": "kthvalue",
    "total_parameters": None,
    "merge": "mean",
    "scaling": 1.0,
}


def settings(h: dict, **more) -> dict:
    """Hyperparameters of a fixture by the names of `ties`."""
    given = {
        "density": h["k_percent"] / 100 if "k_percent" in h else 1 - h["mask_rate"],
        "merge": "sum" if h.get("merge_func") == "disjoint sum" else "mean",
        "total_parameters": h.get("total_parameters"),
        "scaling": h["lambda"],
        **{k: h[k] for k in ("granularity", "counting") if k in h},
    }
    return PLAIN | given | more


@BOTH
@pytest.mark.parametrize(
    "name",
    [
        "ties",
        "ties_dis_sum",
        "ties_full_checkpoint",
        "ties_mergelm",
        "ties_per_tensor",
        "ties_unequal",
    ],
)
def test_ties_is_the_released_one(name, dtype):
    golden = load(name, dtype)
    golden.check(ties(golden.updates, **settings(golden.hyperparameters)))


@BOTH
@pytest.mark.parametrize("name", ["knots_ties", "knots_ties_overcomplete", "knots_ties_unequal"])
def test_ties_in_knots_is_knots_ties(name, dtype):
    golden = load(name, dtype)
    golden.check(ties(golden.updates, **settings(golden.hyperparameters, space="knots")))


@BOTH
@pytest.mark.parametrize("name", ["core_ties", "core_ties_overcomplete", "core_ties_unequal"])
def test_ties_in_the_core_is_core_space_ties(name, dtype):
    golden = load(name, dtype)
    own = settings(golden.hyperparameters, space="core", granularity="tensor")
    golden.check(ties(golden.updates, **own))
