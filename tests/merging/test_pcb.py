import pytest
import torch
from golden import distance, load

from osrm_exp.lora import LowRank
from osrm_exp.merging.pcb import pcb

BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


@BOTH
@pytest.mark.parametrize("name", ["pcb", "pcb_per_tensor"])
def test_pcb_is_the_released_one(name, dtype):
    golden = load(name, dtype)
    h = golden.hyperparameters
    own = {"ratio": h["ratio"], "granularity": h["granularity"], "scaling": h["lambda"]}
    golden.check(pcb(golden.updates, space="delta", **own))


def adapter(seed: int = 0) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(3, 2, 30, generator=g), torch.randn(3, 40, 2, generator=g))


def test_pcb_gives_weight_to_a_share_of_every_task():
    update = LowRank(adapter().A[:1], adapter().B[:1])
    merged = pcb({"w": update}, space="delta", ratio=0.1, granularity="tensor", scaling=1.0)[
        "w"
    ].delta
    assert merged.count_nonzero() == 1200 // 10 - 1  # the smallest of the share has weight 0
    assert merged.abs()[merged != 0].min() > update.delta[0].abs()[merged == 0].max() * 0.99


def test_pcb_depends_on_the_size_of_deltas():
    own = {"space": "delta", "ratio": 0.1, "granularity": "global", "scaling": 1.0}
    small, large = (pcb({"w": adapter() * s}, **own)["w"].delta for s in (1.0, 10.0))
    assert distance(large, small * 10) > 0.05


def test_pcb_refuses_a_ratio_above_one():
    with pytest.raises(ValueError, match="ratio 10 is no share"):
        pcb({"w": adapter()}, space="delta", ratio=10, granularity="global", scaling=1.0)["w"]


@pytest.mark.parametrize("tasks", [64, 89, 200])
def test_pcb_of_many_tasks_is_what_it_is_in_float64(tasks):
    g = torch.Generator().manual_seed(0)
    many = LowRank(torch.randn(tasks, 1, 30, generator=g), torch.randn(tasks, 20, 1, generator=g))
    own = {"space": "delta", "ratio": 0.1, "granularity": "tensor", "scaling": 1.0}
    single, double = (
        pcb({"w": u}, **own)["w"].delta.double() for u in (many, many.to(torch.float64))
    )
    assert (single - double).norm() < 1e-4 * double.norm()
