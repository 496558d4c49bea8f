"""Candidates by layer, on adapters in memory."""

import pytest
import torch
from synthetic import adapters

from osrm_exp.merging import individual, task_arithmetic
from osrm_exp.search import Candidates
from osrm_exp.search.family import Scene

TASKS = ("a", "b", "c")
MODULES = [f"layer.{n}.{part}" for n in (0, 1) for part in ("q", "v")]


def candidates(merge=None, calls=None) -> Candidates:
    updates = adapters(shapes=dict.fromkeys(MODULES, (6, 5)))

    def sums(stacks, settings):
        if calls is not None:
            calls.append(settings)
        return task_arithmetic(stacks, space="delta", scaling=settings.get("scaling", 1.0))

    return Candidates(Scene(updates, merge or sums, list(TASKS), None))


def merged(family: Candidates, settings=None, **point: str) -> dict:
    return dict(family.outcome(settings or {}, family.read(point)).updates)


def test_a_layer_takes_an_expert_the_merge_or_nothing():
    family = candidates()
    stacks = family.scene.updates
    for place, task in enumerate(TASKS):
        for module, update in merged(family, group0=task, group1=task).items():
            assert torch.equal(update.delta, stacks[module].task(place).delta)
    found = merged(family, group0="merged", group1="skip")
    assert list(found) == MODULES
    for module, update in found.items():
        expected = stacks[module].delta.sum(0) if "layer.0" in module else torch.zeros(6, 5)
        torch.testing.assert_close(update.delta, expected.to(update.delta))


def test_the_search_begins_with_the_merge_and_the_experts():
    family = candidates()
    assert [set(start.values()) for start in family.starts] == [{"merged"}, {"a"}, {"b"}, {"c"}]
    assert {k: v.item() for k, v in family.start.items()} == {"group0": 3, "group1": 3}
    assert family.space == dict.fromkeys(("group0", "group1"), (*TASKS, "merged", "skip"))


def test_the_merge_is_computed_once_for_its_settings_and_only_where_it_is_chosen():
    family = candidates(calls=(calls := []))
    merged(family, group0="a", group1="skip")
    assert calls == []
    for _ in range(3):
        merged(family, group0="merged", group1="b")
    half = merged(family, {"scaling": 0.5}, group0="merged", group1="b")
    assert calls == [{}, {"scaling": 0.5}]
    total = family.scene.updates["layer.0.q"].delta.sum(0)
    torch.testing.assert_close(half["layer.0.q"].delta, 0.5 * total)


def test_a_merge_that_gives_every_task_its_own_is_refused():
    family = candidates(lambda stacks, settings: individual(stacks))
    with pytest.raises(ValueError, match="one candidate for all tasks"):
        merged(family, group0="merged", group1="a")
