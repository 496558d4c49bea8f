import pytest
import torch
from golden import distance, load

from osrm_exp.lora import LowRank
from osrm_exp.merging import magmax, streams, ties

BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
PLAIN = {
    "space": "delta",
    "density": 0.2,
    "granularity": "global",
    "counting": "kthvalue",
    "total_parameters": None,
    "merge": "mean",
    "scaling": 1.0,
}


def settings(h: dict, **more) -> dict:
    """Hyperparameters of a fixture by the names of `ties`."""
    given = {
        "density": h["k_percent"] / 100 if "k_percent" in h else 1 - h["mask_rate"],
        "merge": "sum" if h.get("merge_func") == "disjoint sum" else "mean",
        "total_parameters": h.get("total_parameters"),
        "scaling": h["lambda"],
        **{k: h[k] for k in ("granularity", "counting") if k in h},
    }
    return PLAIN | given | more


@BOTH
@pytest.mark.parametrize(
    "name",
    [
        "ties",
        "ties_dis_sum",
        "ties_full_checkpoint",
        "ties_mergelm",
        "ties_per_tensor",
        "ties_unequal",
    ],
)
def test_ties_is_the_released_one(name, dtype):
    golden = load(name, dtype)
    golden.check(ties(golden.updates, **settings(golden.hyperparameters)))


@BOTH
@pytest.mark.parametrize("name", ["knots_ties", "knots_ties_overcomplete", "knots_ties_unequal"])
def test_ties_in_knots_is_knots_ties(name, dtype):
    golden = load(name, dtype)
    golden.check(ties(golden.updates, **settings(golden.hyperparameters, space="knots")))


@BOTH
@pytest.mark.parametrize("name", ["core_ties", "core_ties_overcomplete", "core_ties_unequal"])
def test_ties_in_the_core_is_core_space_ties(name, dtype):
    golden = load(name, dtype)
    own = settings(golden.hyperparameters, space="core", granularity="tensor")
    golden.check(ties(golden.updates, **own))


def plain_ties(tasks: torch.Tensor, keep: int, merge: str) -> torch.Tensor:
    """TIES on flat tasks `[task, d]`, step by step as the paper has it."""
    limit = tasks.abs().sort(dim=1, descending=True).values[:, keep - 1 : keep]
    trimmed = torch.where(tasks.abs() >= limit, tasks, 0)
    sign = trimmed.sum(0).sign()
    sign[sign == 0] = sign.sum().sign()
    agreeing = trimmed * (trimmed * sign > 0)
    total = agreeing.sum(0)
    return total / agreeing.count_nonzero(0).clamp(min=1) if merge == "mean" else total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("merge", ["mean", "sum"])
@pytest.mark.parametrize("granularity", ["global", "tensor"])
@pytest.mark.parametrize("block", [2**19, 30])
def test_ties_where_entries_tie_and_cancel(seed, merge, granularity, block, monkeypatch):
    """Whole numbers give ties at the threshold and sums of zero, which ask for the majority."""
    monkeypatch.setattr(streams, "BLOCK", block)
    g = torch.Generator().manual_seed(seed)

    def whole(*shape: int) -> torch.Tensor:
        return torch.randint(-2, 3, shape, generator=g).double()

    updates = {m: LowRank(whole(2, 2, n), whole(2, k, 2)) for m, k, n in [("a", 8, 9), ("b", 7, 5)]}
    result = ties(updates, **PLAIN | {"granularity": granularity, "merge": merge, "density": 0.6})
    flat = {m: u.delta.flatten(1) for m, u in updates.items()}
    if granularity == "global":
        together = torch.cat(list(flat.values()), dim=1)
        expected = plain_ties(together, int(0.6 * 107) + 1, merge).split([72, 35])
    else:
        expected = [plain_ties(x, int(0.6 * x.shape[1]) + 1, merge) for x in flat.values()]
    for update, reference in zip(result.values(), expected):
        assert torch.allclose(update.delta.flatten(), reference)
    drawn = torch.cat(list(flat.values()), dim=1)
    assert ((drawn.sum(0) == 0) & (drawn[0] != 0)).any()  # else this test tests nothing


def test_one_task_of_thirty_two_decides_nothing():
    g = torch.Generator().manual_seed(0)
    one = LowRank(torch.randn(1, 1, 6, generator=g), torch.randn(1, 5, 1, generator=g))
    same = LowRank(one.A.expand(31, 1, 6), one.B.expand(31, 5, 1))
    updates = {"w": LowRank(torch.cat([same.A, one.A]), torch.cat([same.B, -one.B]))}
    assert distance(ties(updates, **PLAIN | {"density": 1.0})["w"], one.delta[0]) < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge": "median"}, "merge 'median' is unknown: choose mean or sum"),
        ({"granularity": "layer"}, "granularity 'layer' is unknown"),
    ],
)
def test_ties_refuses_unknown_options(change, message):
    updates = {"w": LowRank(torch.randn(2, 1, 6), torch.randn(2, 5, 1))}
    with pytest.raises(ValueError, match=message):
        ties(updates, **PLAIN | change)


def test_magmax_takes_the_largest_of_every_entry():
    tasks = torch.tensor([[[1.0, -5.0, 2.0]], [[-3.0, 4.0, 2.0]]])
    updates = {"w": LowRank(tasks, torch.ones(2, 1, 1))}
    assert magmax(updates, space="delta", scaling=0.5)["w"].delta.tolist() == [[-1.5, -2.5, 1.0]]
