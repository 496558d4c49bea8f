"""What PEFT's CorDA wants to see before it starts."""

from collections.abc import Mapping, Sequence
from typing import Literal

from peft import LoraConfig
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import Tensor
from transformers import PreTrainedModel


def corda(
    net: PreTrainedModel,
    config: LoraConfig,
    rows: Sequence[Mapping[str, Tensor]],
    /,
    *,
    method: Literal["ipm", "kpm"],
) -> None:
    """Lets PEFT see the own task's inputs, row by row: its hook takes no batch, no padding.

    Yang et al., 2024, arXiv 2406.05223.

    Args:
        net: in eval mode; PEFT leaves its findings in the modules.
        config: its `corda_config` is set.
        rows: batches of one row.
        method: `ipm`, the largest directions, as for instruction tuning; `kpm`, the smallest.
    """
    config.corda_config = CordaConfig(corda_method=method)

    def see() -> None:
        for row in rows:
            net(**{key: value for key, value in row.items() if key != "labels"})

    preprocess_corda(net, config, see)
