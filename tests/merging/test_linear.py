import pytest
import torch
from golden import dense, distance, load

from osrm_exp.lora import LowRank, stack
from osrm_exp.merging import average, individual, pretrained, task_arithmetic

BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


@BOTH
@pytest.mark.parametrize("space", ["delta", "knots", "core", "core_balanced"])
@pytest.mark.parametrize(
    "name", ["task_arithmetic", "task_arithmetic_unequal", "knots_ta", "core_ta"]
)
def test_task_arithmetic_is_the_released_sum_in_every_linear_space(name, space, dtype):
    golden = load(name, dtype)
    result = task_arithmetic(golden.updates, space=space, scaling=golden.hyperparameters["lambda"])
    golden.check(result)
    for module, merged in result.items():
        assert isinstance(merged, LowRank) and merged.A.dtype == dtype
        assert merged.rank <= sum(golden.updates[module].ranks)


@BOTH
def test_average_is_the_released_mean(dtype):
    golden = load("weight_average", dtype)
    golden.check(average(golden.updates, space="delta"))


def test_average_of_factors_has_cross_terms():
    A, B = torch.randn(2, 3, 5), torch.randn(2, 7, 3)
    merged = average({"w": LowRank(A, B)}, space="factors")["w"]
    assert merged.rank == 3
    assert distance(merged, B.mean(0) @ A.mean(0)) < 1e-6


def test_individual_keeps_every_task_and_pretrained_none():
    update = stack([LowRank(torch.randn(r, 5), torch.randn(7, r)) for r in (2, 3)])
    assert torch.equal(individual({"w": update})["w"].delta, update.delta)
    nothing = pretrained({"w": update})["w"]
    assert nothing.rank == 0
    assert torch.equal(dense(nothing), torch.zeros(7, 5))
