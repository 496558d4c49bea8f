"""LM-Cocktail's losses with an alignment set."""

import pytest
import torch

from osrm_exp import needs
from osrm_exp.adapter import read_adapter
from osrm_exp.bench import Bench
from osrm_exp.statistics import suite
from osrm_exp.statistics.guarded import guarded_losses


@pytest.fixture
def bench(cell, workshop):
    chosen = cell("roberta", "tuning.epochs=1", "dataset.only=[cola,stsb]")
    folders = workshop.store.get_all(needs.fine_tunes(chosen), workshop)
    return Bench(chosen, [read_adapter(folder) for folder in folders], workshop)


def test_the_alignment_set_has_its_share_of_every_candidates_loss(bench):
    table = suite.loss_table(bench, 6, True)
    assert table.shape == (3, 2)
    for weight in (0.0, 0.25, 1.0):
        found = guarded_losses(bench, samples=6, base=True, weight=weight, alignment=["stsb"])
        torch.testing.assert_close(found, weight * table[:, 1] + (1 - weight) * table[:, 0])
    torch.testing.assert_close(suite.losses(bench, samples=6, base=True), table.mean(1))
    for alignment, sentence in (["nope"], "nope is no task"), ([], "needs an alignment set"):
        with pytest.raises(ValueError, match=sentence):
            guarded_losses(bench, samples=6, base=True, weight=0.5, alignment=alignment)
