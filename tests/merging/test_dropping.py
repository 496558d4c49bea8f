import pytest
import torch
from golden import Golden, load

from osrm_exp.merging import dare, dare_ties, della, dropping

BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


@pytest.fixture
def drawn(monkeypatch):
    """Lets the random numbers give the masks that a fixture's reference run drew."""

    def use(golden: Golden) -> None:
        def draws(seed, module):
            keep, rows = golden.tensors["keep"][module], [0]

            def draw(block):  # 0 is kept at any probability, 1 at none
                rows[0] += block.shape[1]
                return 1.0 - keep[:, rows[0] - block.shape[1] : rows[0]].float()

            return draw

        monkeypatch.setattr(dropping, "draws", draws)

    return use


@BOTH
@pytest.mark.parametrize("name", ["dare", "dare_no_rescale"])
def test_dare_is_the_released_one_given_its_masks(name, dtype, drawn):
    golden = load(name, dtype)
    drawn(golden)
    h = golden.hyperparameters
    own = {"density": 1 - h["drop_rate"], "rescale": h["rescale"], "scaling": h["lambda"]}
    golden.check(dare(golden.updates, space="delta", seed=0, **own))


@BOTH
@pytest.mark.parametrize(("name", "space"), [("dare_ties", "delta"), ("knots_dare_ties", "knots")])
def test_dare_ties_is_the_released_one_given_its_masks(name, space, dtype, drawn):
    golden = load(name, dtype)
    drawn(golden)
    h = golden.hyperparameters
    merged = dare_ties(
        golden.updates,
        space=space,
        density=1 - h["drop_rate"],
        rescale=h.get("rescale", True),
        seed=0,
        trim_density=1 - h["mask_rate"] if "mask_rate" in h else h["k_percent"] / 100,
        granularity=h.get("granularity", "global"),
        counting=h.get("counting", "kthvalue"),
        total_parameters=None,
        merge="mean",
        scaling=h["lambda"],
    )
    golden.check(merged)


@BOTH
@pytest.mark.parametrize("name", ["della", "della_mergekit"])
def test_della_is_the_released_one_given_its_masks(name, dtype, drawn):
    golden = load(name, dtype)
    drawn(golden)
    h = golden.hyperparameters
    own = {k: h[k] for k in ("density", "epsilon", "weights", "normalize")}
    own["rescale"] = {"1/p": "inverse", "l1": "l1"}[h["rescale"]]
    golden.check(della(golden.updates, space="delta", scaling=h["lambda"], seed=0, **own))
