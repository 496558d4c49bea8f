import inspect

import pytest
import torch
from golden import dense, distance
from synthetic import adapters

from osrm_exp.lazy import Lazy
from osrm_exp.lora import Dense, LowRank, stack
from osrm_exp.merging import average, task_arithmetic, ties
from osrm_exp.merging.spaces import SPACES, in_space

LINEAR = ["delta", "knots", "core", "core_balanced"]
UNTRIMMED = {
    "density": 1.0,
    "granularity": "tensor",
    "counting": "kthvalue",
    "total_parameters": None,
    "merge": "mean",
    "scaling": 1.0,
}


@pytest.mark.parametrize("space", LINEAR)
def test_a_space_gives_back_every_task(space):
    updates = adapters((1, 3, 2))
    stacks, lift = SPACES[space](updates)
    for t in range(3):
        lifted = lift({m: Dense(s.delta[t]) for m, s in stacks.items()})
        for module, update in updates.items():
            assert distance(lifted[module], update.delta[t]) < 1e-12


@pytest.mark.parametrize("space", LINEAR)
def test_a_space_lifts_per_task_results(space):
    updates = adapters((1, 3))
    stacks, lift = SPACES[space](updates)
    lifted = lift({m: Dense(s.delta) for m, s in stacks.items()})
    for module, update in updates.items():
        assert distance(lifted[module], update.delta) < 1e-12


@pytest.mark.parametrize("space", ["knots", "core"])
def test_coordinates_are_no_wider_than_the_rank(space):
    A = torch.randn(1, 2, 9, dtype=torch.float64).expand(3, 2, 9)  # shared by all tasks
    B = torch.randn(3, 8, 2, dtype=torch.float64)
    stacks, _ = SPACES[space]({"w": LowRank(A, B)})
    m, n = stacks["w"].shape
    assert m == 6 and n == {"knots": 9, "core": 2}[space]


@pytest.mark.parametrize("space", ["delta", "knots", "core", "core_balanced"])
def test_tasks_that_share_no_entry_are_added(space):
    """A direction that a task does not have must not vote, though rounding gives it 1e-17."""
    g = torch.Generator().manual_seed(0)
    updates = []
    for t in range(3):
        A, B = torch.zeros(2, 12, dtype=torch.float64), torch.zeros(9, 2, dtype=torch.float64)
        A[:, 4 * t : 4 * t + 4] = torch.randn(2, 4, generator=g, dtype=torch.float64)
        B[3 * t : 3 * t + 3] = torch.randn(3, 2, generator=g, dtype=torch.float64)
        updates.append(LowRank(A, B))
    # the same tasks in turned coordinates, where nothing is exactly zero
    Q, _ = torch.linalg.qr(torch.randn(9, 9, generator=g, dtype=torch.float64))
    P, _ = torch.linalg.qr(torch.randn(12, 12, generator=g, dtype=torch.float64))
    if space != "delta":
        updates = [LowRank(u.A @ P, Q @ u.B) for u in updates]
    merged = ties({"w": stack(updates)}, space=space, **UNTRIMMED)["w"]
    assert distance(merged, sum(u.delta for u in updates)) < 1e-9


def test_cores_depend_on_the_split_into_factors_and_balanced_cores_do_not():
    updates = adapters()
    scaled = {
        m: stack([LowRank(u.A / 3**t, u.B * 3**t) for t, u in enumerate(update.unstack())])
        for m, update in updates.items()
    }
    own = UNTRIMMED | {"density": 0.4}
    for space, moved in {"core": True, "core_balanced": False}.items():
        one, other = (ties(given, space=space, **own)["layer0.q"] for given in (updates, scaled))
        assert (distance(other, one) > 0.05) == moved
        assert distance(other, one) > 0.05 or distance(other, one) < 1e-9


def test_factors_of_unequal_ranks_are_refused():
    with pytest.raises(ValueError, match=r"ranks \(1, 2\).*choose the space"):
        average(adapters((1, 2)), space="factors")


def test_an_unknown_space_is_refused():
    with pytest.raises(ValueError, match="'fourier' is unknown: choose one of delta, knots"):
        average(adapters((1, 2)), space="fourier")


def test_a_method_shows_its_keywords():
    parameters = inspect.signature(ties).parameters
    assert list(parameters)[:3] == ["updates", "space", "density"]
    with pytest.raises(TypeError, match="missing a required"):
        inspect.signature(task_arithmetic).bind({}, space="delta")
    with pytest.raises(TypeError, match="unexpected keyword"):
        inspect.signature(task_arithmetic).bind({}, space="delta", scaling=1.0, sclaing=1.0)


def test_a_lazy_result_computes_on_access():
    asked = []

    @in_space
    def rule(stacks):
        return Lazy(stacks, lambda m: asked.append(m) or stacks[m].total())

    result = rule(adapters(), space="knots")
    assert len(result) == 2 and not asked
    dense(result["layer1.v"])
    assert asked == ["layer1.v"]
    with pytest.raises(KeyError):
        result["layer9.q"]
