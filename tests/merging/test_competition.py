import pytest
import torch
from golden import load

from osrm_exp.merging import pcb

BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


@BOTH
@pytest.mark.parametrize("name", ["pcb", "pcb_per_tensor"])
def test_pcb_is_the_released_one(name, dtype):
    golden = load(name, dtype)
    h = golden.hyperparameters
    own = {"ratio": h["ratio"], "granularity": h["granularity"], "scaling": h["lambda"]}
    golden.check(pcb(golden.updates, space="delta", **own))
