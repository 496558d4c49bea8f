import warnings

import pytest
import torch
from adapters import adapters, permuted, rank_of, regauged, repeated
from golden import dense, distance, load
from peft import LoraConfig, get_peft_model
from torch import nn

from osrm_exp.lora import LowRank, stack
from osrm_exp.merging.factors import (
    _lucky,
    lorahub,
    peft_cat,
    peft_dare_linear,
    peft_dare_ties,
    peft_linear,
    peft_magnitude_prune,
    peft_svd,
    peft_ties,
    robustmerge,
)

PEFT = dict(weights=None, scaling=1.0, lora_scaling=None)
BY_ENTRY = {
    "peft_linear": lambda u: peft_linear(u, **PEFT),
    "peft_magnitude_prune": lambda u: peft_magnitude_prune(u, density=0.6, **PEFT),
    "peft_ties": lambda u: peft_ties(u, density=0.6, majority_sign="total", **PEFT),
    "peft_dare_linear": lambda u: peft_dare_linear(u, density=0.6, seed=0, **PEFT),
    "peft_dare_ties": lambda u: peft_dare_ties(
        u, density=0.6, majority_sign="frequency", seed=0, **PEFT
    ),
    "lorahub": lambda u: lorahub(u, weights=None),
    "robustmerge": lambda u: robustmerge(u, density=0.6, eps=1e-8, scaling=1.0),
}
NEUTRAL = {
    "peft_cat": lambda u: peft_cat(u, weights=None, scaling=1.0),
    "peft_svd": lambda u: peft_svd(u, weights=None, scaling=1.0, svd_rank=None),
    "peft_linear": lambda u: peft_linear(u, **PEFT),
    "peft_magnitude_prune": lambda u: peft_magnitude_prune(u, density=1.0, **PEFT),
    "peft_ties": lambda u: peft_ties(u, density=1.0, majority_sign="total", **PEFT),
    "peft_dare_linear": lambda u: peft_dare_linear(u, density=1.0, seed=0, **PEFT),
    "peft_dare_ties": lambda u: peft_dare_ties(
        u, density=1.0, majority_sign="total", seed=0, **PEFT
    ),
    "lorahub": lambda u: lorahub(u, weights=None),
    "robustmerge": lambda u: robustmerge(u, density=1.0, eps=1e-8, scaling=1.0),
}
by_entry = pytest.mark.parametrize("method", BY_ENTRY.values(), ids=list(BY_ENTRY))
both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def folded_into_b(golden):
    """The fixture's factors with all of the LoRA scaling in B, as the pipeline hands them over."""
    if "sqrt" not in golden.folding:
        return golden.updates
    root = torch.tensor(golden.scaling, dtype=torch.float64).sqrt()[:, None, None]
    return {
        m: LowRank(u.A / root.to(u.A), u.B * root.to(u.B), u.ranks)
        for m, u in golden.updates.items()
    }


@both_dtypes
@pytest.mark.parametrize("name", ["peft_cat", "peft_cat_unequal"])
def test_peft_cat_golden(name, dtype):
    golden = load(name, dtype)
    golden.check(peft_cat(golden.updates, weights=golden.hyperparameters["weights"], scaling=1.0))


@both_dtypes
@pytest.mark.parametrize("name", ["peft_svd", "peft_svd_full", "peft_svd_unequal"])
def test_peft_svd_golden(name, dtype):
    golden = load(name, dtype)
    weights, rank = (golden.hyperparameters.get(key) for key in ("weights", "svd_rank"))
    golden.check(peft_svd(golden.updates, weights=weights, scaling=1.0, svd_rank=rank))


@both_dtypes
@pytest.mark.parametrize(
    "name", ["peft_linear", "peft_magnitude_prune", "peft_ties", "peft_ties_frequency"]
)
def test_peft_by_entry_golden(name, dtype):
    golden = load(name, dtype)
    given = golden.hyperparameters
    options = dict(weights=given["weights"], scaling=1.0, lora_scaling=golden.scaling)
    if name != "peft_linear":
        options["density"] = given["density"]
    if name.startswith("peft_ties"):
        options["majority_sign"] = given.get("majority_sign_method", "total")
    method = {
        "linear": peft_linear,
        "magnitude_prune": peft_magnitude_prune,
        "ties": peft_ties,
    }[given["combination_type"]]
    golden.check(method(folded_into_b(golden), **options))


@both_dtypes
def test_lorahub_golden(dtype):
    golden = load("lorahub", dtype)
    golden.check(lorahub(golden.updates, weights=golden.hyperparameters["weights"]))


@both_dtypes
def test_robustmerge_golden(dtype):
    golden = load("robustmerge", dtype)
    given = golden.hyperparameters
    density = given["k_percent"] / 100
    golden.check(
        robustmerge(golden.updates, density=density, eps=given["eps"], scaling=given["lambda"])
    )


class Peft:
    """Two linear layers with real PEFT adapters, one of each rank, of its own LoRA scaling."""

    def __init__(self, ranks, scaling):
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 9)).double()
        for t, (rank, s) in enumerate(zip(ranks, scaling)):
            config = LoraConfig(r=rank, lora_alpha=s * rank, target_modules=["0", "2"])
            if t == 0:
                self.model = get_peft_model(base, config, adapter_name="t0")
            else:
                self.model.add_adapter(f"t{t}", config)
        self.names = [f"t{t}" for t in range(len(ranks))]
        self.layers = {"0": self.model.base_model.model[0], "2": self.model.base_model.model[2]}
        for layer in self.layers.values():
            for name in self.names:
                for weight in (layer.lora_A[name].weight, layer.lora_B[name].weight):
                    weight.data = torch.randn_like(weight, dtype=torch.float64)

    def updates(self):
        return {
            module: stack(
                [
                    LowRank(
                        layer.lora_A[name].weight.data.clone(),
                        layer.lora_B[name].weight.data * layer.scaling[name],
                    )
                    for name in self.names
                ]
            )
            for module, layer in self.layers.items()
        }

    def merged(self, kind, weights, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model.add_weighted_adapter(
                self.names, weights, adapter_name=kind, combination_type=kind, **options
            )
        return {m: layer.get_delta_weight(kind).detach() for m, layer in self.layers.items()}


@pytest.mark.parametrize("weights", [[0.5, 0.3, 0.7], [1.0, -0.4, 0.6]])
@pytest.mark.parametrize("scaling", [[2.0, 2.0, 2.0], [2.0, 0.5, 1.5]])
def test_agrees_with_peft_itself(weights, scaling):
    """Up to single precision, in which PEFT keeps its weights."""
    peft = Peft((4, 4, 4), scaling)
    updates = peft.updates()
    own = dict(
        weights=weights, scaling=1.0, lora_scaling=None if len(set(scaling)) == 1 else scaling
    )
    trim = dict(density=0.6)
    for kind, options, merged in [
        ("cat", {}, peft_cat(updates, weights=weights, scaling=1.0)),
        ("svd", {}, peft_svd(updates, weights=weights, scaling=1.0, svd_rank=None)),
        ("linear", {}, peft_linear(updates, **own)),
        ("magnitude_prune", trim, peft_magnitude_prune(updates, **trim, **own)),
        ("ties", trim, peft_ties(updates, **trim, majority_sign="total", **own)),
        ("dare_linear", {"density": 1.0}, peft_dare_linear(updates, density=1.0, seed=0, **own)),
        (
            "dare_ties",
            {"density": 1.0, "majority_sign_method": "frequency"},
            peft_dare_ties(updates, density=1.0, majority_sign="frequency", seed=0, **own),
        ),
    ]:
        expected = peft.merged(kind, weights, **options)
        for module in updates:
            assert distance(merged[module], expected[module]) < 1e-6, (kind, module)


def test_agrees_with_peft_on_unequal_ranks():
    peft, weights = Peft((2, 4, 3), [2.0, 0.5, 1.5]), [0.5, 0.3, 0.7]
    updates = peft.updates()
    for kind, merged in [
        ("cat", peft_cat(updates, weights=weights, scaling=1.0)),
        ("svd", peft_svd(updates, weights=weights, scaling=1.0, svd_rank=None)),
    ]:
        expected = peft.merged(kind, weights)
        for module in updates:
            assert distance(merged[module], expected[module]) < 1e-6, (kind, module)


@by_entry
def test_unequal_ranks_are_refused(method):
    with pytest.raises(ValueError, match=r"layer0\.q has adapters of rank \[2, 3\]"):
        method(adapters((2, 3)))


@by_entry
def test_absent_tasks_add_nothing(method):
    updates = adapters((3, 0, 3))
    present = {m: stack([u.unstack()[0], u.unstack()[2]]) for m, u in updates.items()}
    for module, merged in method(updates).items():
        assert merged.rank == 3
        assert dense(merged).isfinite().all()
        if method in (BY_ENTRY["peft_linear"], BY_ENTRY["peft_ties"], BY_ENTRY["robustmerge"]):
            assert distance(merged, method(present)[module]) < 1e-7
    assert all(not dense(merged).any() for merged in method(adapters((0, 0))).values())


@by_entry
def test_zero_adapters_and_many_tasks(method):
    idle = {m: LowRank(u.A, u.B * 0, u.ranks) for m, u in adapters().items()}
    assert all(not dense(merged).any() for merged in method(idle).values())
    assert all(dense(merged).isfinite().all() for merged in method(adapters((2,) * 32)).values())


@by_entry
def test_rank_and_dtype_are_those_of_one_adapter(method):
    for merged in method(adapters(dtype=torch.float32)).values():
        assert merged.rank == 3
        assert merged.A.dtype == merged.B.dtype == torch.float32


@by_entry
def test_depends_on_how_a_delta_is_split(method):
    updates = adapters()
    other = method(regauged(updates))
    assert all(distance(other[m], merged) > 0.05 for m, merged in method(updates).items())


@pytest.mark.parametrize(
    "name", ["peft_linear", "peft_magnitude_prune", "peft_ties", "lorahub", "robustmerge"]
)
def test_order_of_the_tasks_is_irrelevant(name):
    updates = adapters()
    other = BY_ENTRY[name](permuted(updates, (2, 0, 1)))
    for module, merged in BY_ENTRY[name](updates).items():
        assert distance(other[module], merged) < 1e-12


@pytest.mark.parametrize("method", NEUTRAL.values(), ids=list(NEUTRAL))
def test_one_task_keeps_its_adapter(method):
    updates = adapters((3,))
    for module, merged in method(updates).items():
        assert distance(merged, updates[module].delta[0]) < 1e-7


@pytest.mark.parametrize(
    ("name", "times"),
    [("peft_linear", 9), ("peft_ties", 1), ("lorahub", 1), ("robustmerge", 3), ("peft_cat", 3)],
)
def test_three_equal_adapters_give_a_multiple_of_one(name, times):
    updates = repeated(adapters(), 3)
    for module, merged in NEUTRAL[name](updates).items():
        assert distance(merged, times * updates[module].delta[0]) < 1e-7


def test_peft_linear_at_weights_1_over_t_triples_three_equal_adapters():
    updates = repeated(adapters(), 3)
    for module, merged in peft_linear(updates, **{**PEFT, "weights": [1 / 3] * 3}).items():
        assert distance(merged, 3 * updates[module].delta[0]) < 1e-12


def test_scaling_multiplies_the_delta():
    updates = adapters()
    for name, options in [
        (peft_ties, dict(density=0.6, majority_sign="total")),
        (peft_magnitude_prune, dict(density=0.6)),
    ]:
        once, half = (name(updates, **options, **{**PEFT, "scaling": s}) for s in (1.0, 0.5))
        for module in updates:
            assert distance(half[module], once[module].delta / 2) < 1e-14


def test_peft_cat_is_the_weighted_sum_at_full_rank():
    updates, weights = adapters((2, 4, 1)), [0.5, -1.0, 2.0]
    for module, merged in peft_cat(updates, weights=weights, scaling=0.3).items():
        expected = 0.3 * torch.einsum(
            "t,tmn->mn", torch.tensor(weights).double(), updates[module].delta
        )
        assert merged.rank == 7
        assert distance(merged, expected) < 1e-14


def test_peft_svd_is_the_nearest_of_its_rank():
    updates = adapters((2, 4, 1))
    for rank, expected_rank in [(None, 4), (2, 2), (50, 7)]:
        merged = peft_svd(updates, weights=None, scaling=1.0, svd_rank=rank)
        for module, update in updates.items():
            U, S, Vh = torch.linalg.svd(update.delta.sum(0), full_matrices=False)
            cut = (U[:, :expected_rank] * S[:expected_rank]) @ Vh[:expected_rank]
            assert rank_of(merged[module]) == expected_rank
            assert distance(merged[module], cut) < 1e-12


def test_lorahub_weights():
    updates = adapters()
    for t, one_hot in enumerate([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]):
        for module, merged in lorahub(updates, weights=one_hot).items():
            assert distance(merged, updates[module].delta[t]) < 1e-14
    assert all(not dense(merged).any() for merged in lorahub(updates, weights=[0.0] * 3).values())


def test_lorahub_feels_the_sign_of_factors():
    updates = adapters()
    sign = torch.tensor([-1.0, 1.0, 1.0]).double()[:, None, None]
    flipped = {m: LowRank(u.A * sign, u.B * sign) for m, u in updates.items()}
    for module, merged in lorahub(updates, weights=None).items():
        assert distance(lorahub(flipped, weights=None)[module], merged) > 0.1


def test_pruning_keeps_exactly_the_share():
    for density, kept in [(0.4, 12), (0.39, 11), (1.0, 30)]:  # of 3 x 10 entries of A
        merged = peft_magnitude_prune(adapters((3,)), density=density, **PEFT)["layer0.q"]
        assert merged.A.count_nonzero() == kept
    assert (
        robustmerge(adapters((3,)), density=0.4, eps=0.0, scaling=1.0)["layer0.q"].A.count_nonzero()
        == 13
    )


def test_dare_is_a_function_of_its_seed():
    updates = adapters()
    options = dict(density=0.5, **PEFT)
    one, again, other = (peft_dare_linear(updates, seed=s, **options) for s in (1, 1, 2))
    for module in updates:
        assert distance(one[module], again[module]) == 0
        assert distance(one[module], other[module]) > 0.1


def test_dare_keeps_the_expectation_of_a_factor():
    A = torch.ones(1, 3, 4000, dtype=torch.float64)
    wide = {"m": LowRank(A, torch.ones(1, 5, 3, dtype=torch.float64))}
    kept = peft_dare_linear(wide, density=0.3, seed=0, **PEFT)["m"].A
    assert set(kept.unique().tolist()) == {0.0, 1 / 0.3}
    assert kept.mean().item() == pytest.approx(1, abs=0.05)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="majority_sign is 'mean'"):
        peft_ties(adapters(), density=0.5, majority_sign="mean", **PEFT)
    for density in (0.0, 20, -0.1):
        with pytest.raises(ValueError, match=f"density is {density}"):
            peft_magnitude_prune(adapters(), density=density, **PEFT)


@pytest.mark.parametrize("density", [0.123456, 0.5, 1.0])
def test_the_entries_that_survive_are_those_of_bernoulli(density):
    one, other = (torch.Generator().manual_seed(3) for _ in range(2))
    for shape in ((2, 3, 50), (2, 7, 1)):
        kept = torch.bernoulli(torch.full(shape, density), generator=one)
        assert torch.equal(_lucky(torch.ones(shape), density, other), kept / density)
