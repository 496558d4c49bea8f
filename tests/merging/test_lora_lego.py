import pytest
import torch
from adapters import adapters, permuted, rank_of, regauged, repeated
from golden import dense, distance, load

from osrm_exp.lora import LowRank, stack
from osrm_exp.merging.lora_lego import canonical_units, cluster, lora_lego, merge_units

DEFAULTS = dict(k=None, features="unit", r_ref="single", eps=1e-12, seed=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["lora_lego_single", "lora_lego_total"])
def test_golden_given_its_clusters(name, dtype):
    golden = load(name, dtype)
    given = golden.hyperparameters
    total = name.endswith("total")
    merged = {}
    for module, update in golden.updates.items():
        units, labels = update.total(), golden.tensors["labels"][module]
        centroids = merge_units(units.A, units.B.mT, labels, given["eps"])
        rank = units.rank if total else given["rank_of_one_adapter"]
        merged[module] = centroids * (rank / given["k"]) ** 0.5
    golden.check(merged)


@pytest.mark.parametrize("features", ["unit", "raw"])
@pytest.mark.parametrize("r_ref", ["single", "total"])
def test_one_task_keeps_its_adapter(features, r_ref):
    updates = adapters((3,))
    options = {**DEFAULTS, "features": features, "r_ref": r_ref}
    for module, merged in lora_lego(updates, **options).items():
        assert distance(merged, updates[module].delta[0]) < 1e-10


def test_equal_adapters_give_the_adapter_or_a_multiple_of_it():
    updates = repeated(adapters(), 3)
    for r_ref, times in [("single", 1), ("total", 3**0.5)]:
        for module, merged in lora_lego(updates, **{**DEFAULTS, "r_ref": r_ref}).items():
            assert merged.rank == 3
            assert distance(merged, times * updates[module].delta[0]) < 1e-10


def test_a_cluster_a_unit_is_the_sum():
    update = adapters((2, 4, 1))["layer0.q"]
    a, b = canonical_units(update)
    assert distance(merge_units(a, b, torch.arange(7), 0.0), update.delta.sum(0)) < 1e-12


def test_units_have_one_form():
    """`(c a, b / c)` is the same unit for every `c`, negative ones included."""
    update = adapters((2, 4))["layer0.q"]
    g = torch.Generator().manual_seed(0)
    c = torch.randn(2, 4, generator=g).double()
    other = LowRank(update.A * c[..., None], update.B / c[:, None], update.ranks)
    for form, expected in zip(canonical_units(other), canonical_units(update)):
        torch.testing.assert_close(form, expected)
    a, b = canonical_units(update)
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=1))
    assert distance(b.mT @ a, update.delta.sum(0)) < 1e-12


def test_result_ignores_unit_scales_and_task_order_but_not_other_gauges():
    updates = adapters((3, 3, 3))
    g = torch.Generator().manual_seed(0)
    c = torch.randn(3, 3, generator=g).double()
    rescaled = {m: LowRank(u.A * c[..., None], u.B / c[:, None]) for m, u in updates.items()}
    merged = lora_lego(updates, **DEFAULTS)
    for module in updates:
        assert distance(lora_lego(rescaled, **DEFAULTS)[module], merged[module]) < 1e-10
        reordered = lora_lego(permuted(updates, (2, 0, 1)), **DEFAULTS)[module]
        assert distance(reordered, merged[module]) < 1e-12
        assert distance(lora_lego(regauged(updates), **DEFAULTS)[module], merged[module]) > 0.01


def test_clusters_find_planted_groups():
    g = torch.Generator().manual_seed(0)
    truth = torch.arange(4).repeat(5)
    a = torch.eye(4, 12)[truth] + 0.02 * torch.randn(20, 12, generator=g)
    b = torch.eye(4, 9)[truth] + 0.02 * torch.randn(20, 9, generator=g)
    for features in ("unit", "raw"):
        found = cluster(a.double(), b.double(), 4, features, seed=0)
        assert len(set(zip(found.tolist(), truth.tolist()))) == 4


def test_direction_alone_counts_for_unit_features():
    a = torch.tensor([[1.0, 0.0], [100.0, 1.0], [0.0, 1.0]]).double()
    b = torch.tensor([[1.0, 0.0], [100.0, 1.0], [0.0, 1.0]]).double()
    near = cluster(a, b, 2, "unit", seed=0)
    assert near[0] == near[1] != near[2]
    size = cluster(a, b, 2, "raw", seed=0)
    assert size[0] == size[2] != size[1]


@pytest.mark.parametrize("k", [1, 2, 5, 50])
def test_k_bounds_the_rank(k):
    for merged in lora_lego(adapters((2, 4, 1)), **{**DEFAULTS, "k": k}).values():
        assert merged.rank == min(k, 7)
        assert rank_of(merged) <= k


def test_tasks_without_units():
    updates = adapters((3, 0, 2))
    idle = {m: LowRank(u.A, u.B * 0, u.ranks) for m, u in updates.items()}
    for given in (idle, adapters((0, 0))):
        assert all(not dense(merged).any() for merged in lora_lego(given, **DEFAULTS).values())
    one = {
        m: stack([u.unstack()[0], LowRank(u.A[1, :0], u.B[1, :, :0])]) for m, u in updates.items()
    }
    for module, merged in lora_lego(one, **DEFAULTS).items():
        assert distance(merged, updates[module].delta[0]) < 1e-10


def test_thirty_two_float32_tasks():
    for merged in lora_lego(adapters((2,) * 32, dtype=torch.float32), **DEFAULTS).values():
        assert merged.A.dtype == torch.float32
        assert merged.rank == 2
        assert dense(merged).isfinite().all()


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="features is 'scaled'"):
        lora_lego(adapters(), **{**DEFAULTS, "features": "scaled"})
    with pytest.raises(ValueError, match="r_ref is 'all'"):
        lora_lego(adapters(), **{**DEFAULTS, "r_ref": "all"})
