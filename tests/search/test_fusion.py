"""Layer-wise fusion, on adapters in memory: what every method of a group comes to."""

import pytest
import torch
from synthetic import adapters

from osrm_exp.merging import slerp, task_arithmetic, ties
from osrm_exp.search import Fusion
from osrm_exp.search.family import Scene

TASKS = ("a", "b", "c")
MODULES = [f"layer.{n}.{part}" for n in (0, 1) for part in ("q", "v")]


def fusion(groups: int = 2, tasks=TASKS) -> Fusion:
    updates = adapters((2,) * len(tasks), shapes=dict.fromkeys(MODULES, (6, 5)))
    return Fusion(Scene(updates, lambda stacks, settings: stacks, list(tasks), None), groups=groups)


def merged(family: Fusion, point: dict) -> dict:
    return dict(family.outcome({}, family.read(point)).updates)


def chosen(family: Fusion, method: str, **numbers: float) -> dict:
    """The same method, with the same numbers, everywhere."""
    names = [n for n, (_, value) in family.conditions.items() if value == method]
    methods = {name: method for name in family.space if name.endswith("/method")}
    return {**methods, **{name: numbers[name.rpartition("/")[2]] for name in names}}


def equal(found: dict, expected: dict) -> None:
    assert list(found) == MODULES
    for module in MODULES:
        torch.testing.assert_close(found[module].delta, expected[module].delta, rtol=1e-6, atol=0)


def test_one_alone_is_that_expert_and_the_search_begins_with_them():
    family = fusion()
    assert len(family.starts) == 3
    for task, start in enumerate(family.starts):
        alone = {module: stack.task(task) for module, stack in family.scene.updates.items()}
        equal(merged(family, start), alone)
    assert family.start.keys() == family.read(family.starts[0]).keys()


def test_weights_count_by_their_shares_and_none_is_no_update():
    family = fusion()
    found = merged(family, chosen(family, "linear", a=0.2, b=0.6, c=0.0))
    stacks = family.scene.updates
    for module, stack in stacks.items():
        expected = 0.25 * stack.delta[0] + 0.75 * stack.delta[1]
        torch.testing.assert_close(found[module].delta, expected)
    nothing = merged(family, chosen(family, "linear", a=0.0, b=0.0, c=0.0))
    assert all(update.delta.abs().max() == 0 for update in nothing.values())


def test_sums_and_ties_are_those_of_the_methods():
    family = fusion()
    stacks = family.scene.updates
    found = merged(family, chosen(family, "task_arithmetic", scaling=0.4))
    equal(found, task_arithmetic(stacks, space="delta", scaling=0.4))
    found = merged(family, chosen(family, "ties", density=0.3, scaling=0.7))
    expected = ties(
        stacks, space="delta", density=0.3, scaling=0.7, granularity="tensor",
        counting="mask_rate", total_parameters=None, merge="mean",
    )  # fmt: skip
    equal(found, expected)


def test_slerp_joins_the_two_that_a_group_likes_best():
    family = fusion(groups=1)
    point = {
        name: {"a": 0.9, "b": 0.1, "c": 0.5}.get(name.rpartition("/")[2], "slerp")
        for name in chosen(family, "slerp", a=0, b=0, c=0)
    }
    point["all/v/slerp/a"] = 0.3  # still above b in sum, and below c in its own component
    found = merged(family, point)
    for module, stack in family.scene.updates.items():
        two = {module: type(stack)(stack.A[[0, 2]], stack.B[[0, 2]])}
        own = torch.tensor([0.9 if module.endswith("q") else 0.3, 0.5], dtype=torch.float64)
        t = own.softmax(0)[1].item()
        expected = slerp(two, t=t, dot_threshold=0.9995)[module]
        torch.testing.assert_close(found[module].delta, expected.delta)


def test_groups_and_components_have_numbers_of_their_own():
    family = fusion()
    point = chosen(family, "task_arithmetic", scaling=0.4)
    point["group1/v/task_arithmetic/scaling"] = 1.0
    found = merged(family, point)
    for module, stack in family.scene.updates.items():
        scaling = 1.0 if module == "layer.1.v" else 0.4
        torch.testing.assert_close(found[module].delta, scaling * stack.delta.sum(0))


def test_only_the_numbers_of_the_chosen_method_are_in_the_space():
    family = fusion()
    methods = [name for name in family.space if name not in family.conditions]
    assert methods == ["group0/method", "group1/method"]
    for name, (on, value) in family.conditions.items():
        group, _, method, _ = name.split("/")
        assert on == f"{group}/method" and value == method
    for start in family.starts:  # whole points, and nothing else
        assert set(start) == set(methods) | {n for n in family.conditions if "/linear/" in n}


def test_one_task_and_too_many_groups_are_refused():
    with pytest.raises(ValueError, match="a is the only one: take a suite of two or more"):
        fusion(tasks=("a",))
    with pytest.raises(ValueError, match="groups=3 of 2 layers"):
        fusion(groups=3)
