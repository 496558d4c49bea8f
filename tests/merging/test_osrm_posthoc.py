import pytest
import torch

from osrm_exp import inits, pipeline
from osrm_exp.lora import LowRank, stack
from osrm_exp.merging import osrm_posthoc, task_arithmetic
from osrm_exp.needs import fine_tunes, of_inits, of_merge

WIDTH, OUT, RANK, TASKS = 24, 6, 3, 3


def grams(seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(TASKS, 4 * WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    return X.mT @ X / X.shape[1]


def adapters(rows):
    generator = torch.Generator().manual_seed(1)
    B = torch.randn(TASKS, OUT, RANK, generator=generator, dtype=torch.float64)
    return {"m": stack([LowRank(A.double(), b) for A, b in zip(rows, B)])}


def osrm_rows(gram):
    """What init=osrm starts from, task by task."""
    found = []
    for task in range(TASKS):
        others = torch.stack([g for i, g in enumerate(gram) if i != task])
        found.append(
            inits.osrm(WIDTH, RANK, generator=torch.Generator(), others=others, tie_break="random")
        )
    return found


def test_adapters_that_stayed_in_osrms_rows_are_added_as_they_are():
    gram = grams()
    updates = adapters(osrm_rows(gram))
    moved = osrm_posthoc(updates, {"m": gram}, scaling=0.7)["m"]
    plain = task_arithmetic(updates, space="delta", scaling=0.7)["m"]
    torch.testing.assert_close(moved.delta, plain.delta, rtol=0, atol=1e-5)


def test_of_other_adapters_what_is_left_is_silent_for_the_other_tasks():
    gram = grams()
    updates = adapters(torch.randn(TASKS, RANK, WIDTH, generator=torch.Generator().manual_seed(2)))
    moved = osrm_posthoc(updates, {"m": gram}, scaling=1.0)["m"]
    parts = [
        u.delta @ A.double().mT @ A.double()
        for u, A in zip(updates["m"].unstack(), osrm_rows(gram))
    ]
    torch.testing.assert_close(moved.delta, sum(parts), rtol=0, atol=1e-5)
    assert moved.delta.norm() < sum(u.delta for u in updates["m"].unstack()).norm() / 2


def test_a_single_task_has_no_others():
    alone = {"m": LowRank(torch.ones(1, RANK, WIDTH), torch.ones(1, OUT, RANK))}
    with pytest.raises(ValueError, match="needs at least two tasks"):
        osrm_posthoc(alone, {"m": torch.eye(WIDTH)[None]}, scaling=1.0)


def test_its_statistic_is_the_one_that_the_init_collected(cell, workshop):
    chosen = cell("roberta", "merge=osrm_posthoc", "init=osrm", "tuning.epochs=1")
    found = fine_tunes(chosen)
    assert {one.digest for one in of_merge(chosen, found)["gram"]} == {
        one.digest for one in of_inits(found)
    }
    rows = pipeline.run(chosen, workshop).rows
    assert rows[0]["output"].startswith("shared, lowrank")
