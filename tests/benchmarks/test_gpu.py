"""The benchmark of a GPU runs at a tiny size, and its operations are those that PyTorch counts."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu
from gpu_shapes import Shape, fed, network

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["roberta_large", "t5_large"])
def test_counted_operations(name):
    """The first layer's inputs want no gradient, so the count is somewhat above PyTorch's."""
    shape = Shape(name, "fp32", 64, 2, recomputed=False, tiny=True)
    net = network(shape, CPU).train()
    batch = fed(shape, 0)
    with FlopCounterMode(display=False) as counter:
        net(**{k: v for k, v in batch.items() if k != "labels"}).logits.float().sum().backward()
    assert 1 <= shape.operations(net)["hardware"] / counter.get_total_flops() < 1.15


def test_a_step_is_measured():
    found = gpu.step(Shape("llama3_8b", "bf16", 16, 2, recomputed=False, tiny=True), CPU)
    assert found["tokens_per_second"] == pytest.approx(32 * found["steps_per_second"])
    assert 0 < found["mfu_hardware"] < found["mfu_conventional"]


def test_what_takes_too_long_says_so():
    def endless() -> dict:
        while True:
            pass

    assert "stopped after" in gpu.attempt(0.2, endless)["error"]
