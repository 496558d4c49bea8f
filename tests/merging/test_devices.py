"""Merging happens where the factors lie, and gives the same numbers there."""

import pytest
import torch
from elsewhere import ELSEWHERE, Machine

from osrm_exp.lora import Dense, LowRank, Update, stack
from osrm_exp.merging.api import configured

READ_AS_STREAMS = (
    "ties", "knots_ties", "core_ties", "dare_ties", "core_dare_ties", "della", "breadcrumbs_ties",
)  # fmt: skip


def numbers(update: Update) -> torch.Tensor:
    if isinstance(update, Dense):
        return update.delta.cpu()
    return update.B.cpu() @ update.A.cpu()


@pytest.mark.parametrize("name", [*READ_AS_STREAMS, "task_arithmetic", "tsv", "model_stock"])
def test_a_merge_stays_on_its_device(name):
    generator = torch.Generator().manual_seed(0)
    tasks = [
        LowRank(torch.randn(2, 12, generator=generator), torch.randn(9, 2, generator=generator))
        for _ in range(3)
    ]
    here = configured(name)({"q": stack(tasks)})["q"]
    with Machine():
        there = configured(name)({"q": stack(tasks).to(ELSEWHERE)})["q"]
        assert there.device == ELSEWHERE
        assert torch.equal(numbers(there), numbers(here))


def test_what_forgets_a_device_is_refused():
    with Machine(), pytest.raises(RuntimeError, match="same device"):
        torch.ones(2).to(ELSEWHERE) + torch.ones(2)
