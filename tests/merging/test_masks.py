import pytest
import torch
from golden import load

from osrm_exp.lora import LowRank
from osrm_exp.merging import consensus, emr, masks, tall_mask

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


def rows(*tasks: list[float]) -> dict[str, LowRank]:
    """Tasks with the given entries."""
    return {"w": LowRank(torch.tensor(tasks)[:, None], torch.ones(len(tasks), 1, 1))}


@pytest.mark.parametrize("rescaler", ["global", "per_tensor_mean"])
def test_emr_keeps_the_stages_and_the_norm_of_every_task(rescaler):
    updates = rows([2.0, -1.0, 3.0, 0.0], [4.0, -3.0, -1.0, 0.0])
    first, second = emr(updates, space="delta", rescaler=rescaler)["w"].delta
    # unified: 4 -3 3 0; the second task does not have the third sign
    assert torch.allclose(first, 6 / 10 * torch.tensor([[4.0, -3.0, 3.0, 0.0]]))
    assert torch.allclose(second, 8 / 7 * torch.tensor([[4.0, -3.0, 0.0, 0.0]]))


def test_the_stages_of_emr_are_the_released_ones():
    golden = load("emr_global")
    for module, update in golden.updates.items():
        mask, unified = golden.tensors["mask"][module], golden.tensors["unified"][module]
        assert torch.allclose(masks._masked_unified(update.delta), mask * unified)


def test_emr_rescalers_differ_where_modules_do():
    updates = {
        **rows([2.0, 1.0], [4.0, -3.0]),
        "v": LowRank(torch.ones(2, 1, 1), torch.ones(2, 9, 1)),
    }
    paper = emr(updates, space="delta", rescaler="global")["w"].delta
    code = emr(updates, space="delta", rescaler="per_tensor_mean")["w"].delta
    assert not torch.allclose(paper, code)
    with pytest.raises(ValueError, match="rescaler 'l2' is unknown"):
        emr(updates, space="delta", rescaler="l2")


def test_masks_of_consensus_are_the_released_ones():
    golden = load("consensus")
    threshold = golden.hyperparameters["mask_lambda"]
    for module, update in golden.updates.items():
        assert torch.equal(
            masks._tall(update.delta, threshold), golden.tensors["mask"][module].bool()
        )


def test_consensus_of_none_is_task_arithmetic_and_of_too_many_is_nothing():
    updates = rows([2.0, -1.0], [4.0, 3.0])
    own = {"space": "delta", "mask_threshold": 0.4, "scaling": 0.5}
    assert consensus(updates, k=0, **own)["w"].delta.tolist() == [[3.0, 1.0]]
    assert not consensus(updates, k=3, **own)["w"].delta.any()
