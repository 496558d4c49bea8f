import pytest
import torch
from golden import Golden, load

from osrm_exp.lora import LowRank
from osrm_exp.merging import dare, dare_ties, della, dropping, streams

BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


@pytest.fixture
def drawn(monkeypatch):
    """Lets the random numbers give the masks that a fixture's reference run drew."""

    def use(golden: Golden) -> None:
        def draws(seed, module):
            keep, rows = golden.tensors["keep"][module], [0]

            def draw(block):  # 0 is kept at any probability, 1 at none
                rows[0] += block.shape[1]
                return 1.0 - keep[:, rows[0] - block.shape[1] : rows[0]].float()

            return draw

        monkeypatch.setattr(dropping, "draws", draws)

    return use


@BOTH
@pytest.mark.parametrize("name", ["dare", "dare_no_rescale"])
def test_dare_is_the_released_one_given_its_masks(name, dtype, drawn):
    golden = load(name, dtype)
    drawn(golden)
    h = golden.hyperparameters
    own = {"density": 1 - h["drop_rate"], "rescale": h["rescale"], "scaling": h["lambda"]}
    golden.check(dare(golden.updates, space="delta", seed=0, **own))


@BOTH
@pytest.mark.parametrize(("name", "space"), [("dare_ties", "delta"), ("knots_dare_ties", "knots")])
def test_dare_ties_is_the_released_one_given_its_masks(name, space, dtype, drawn):
    golden = load(name, dtype)
    drawn(golden)
    h = golden.hyperparameters
    merged = dare_ties(
        golden.updates,
        space=space,
        density=1 - h["drop_rate"],
        rescale=h.get("rescale", True),
        seed=0,
        trim_density=1 - h["mask_rate"] if "mask_rate" in h else h["k_percent"] / 100,
        granularity=h.get("granularity", "global"),
        counting=h.get("counting", "kthvalue"),
        total_parameters=None,
        merge="mean",
        scaling=h["lambda"],
    )
    golden.check(merged)


@BOTH
@pytest.mark.parametrize("name", ["della", "della_mergekit"])
def test_della_is_the_released_one_given_its_masks(name, dtype, drawn):
    golden = load(name, dtype)
    drawn(golden)
    h = golden.hyperparameters
    own = {k: h[k] for k in ("density", "epsilon", "weights", "normalize")}
    own["rescale"] = {"1/p": "inverse", "l1": "l1"}[h["rescale"]]
    golden.check(della(golden.updates, space="delta", scaling=h["lambda"], seed=0, **own))


def ones(*shape: int, tasks: int = 1) -> LowRank:
    """Adapters whose deltas are one everywhere, so that a result shows the masks."""
    return LowRank(torch.ones(tasks, 1, shape[1]), torch.ones(tasks, shape[0], 1))


DARE = {"space": "delta", "rescale": False, "scaling": 1.0}


def test_masks_depend_on_seed_module_and_task_alone(monkeypatch):
    updates = {"a": ones(40, 30), "b": ones(40, 30)}
    masks = {m: mask.delta for m, mask in dare(updates, density=0.5, seed=0, **DARE).items()}
    assert not torch.equal(masks["a"], masks["b"])
    assert not torch.equal(masks["a"], dare(updates, density=0.5, seed=1, **DARE)["a"].delta)
    assert torch.equal(
        masks["b"], dare({"b": updates["b"]}, density=0.5, seed=0, **DARE)["b"].delta
    )
    two = dare({"a": ones(40, 30, tasks=2)}, density=0.5, seed=0, **DARE)["a"].delta
    assert set(two.unique().tolist()) == {0.0, 1.0, 2.0}  # another mask for the second task
    assert (two >= masks["a"]).all()  # and the same for the first
    monkeypatch.setattr(streams, "BLOCK", 90)
    assert torch.equal(masks["a"], dare(updates, density=0.5, seed=0, **DARE)["a"].delta)
    double = {"a": updates["a"].to(torch.float64)}
    assert torch.equal(masks["a"].double(), dare(double, density=0.5, seed=0, **DARE)["a"].delta)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_keeps_its_share_and_the_expectation(density):
    kept = dare({"w": ones(200, 200)}, density=density, seed=0, **DARE)["w"].delta
    sigma = (density * (1 - density) / kept.numel()) ** 0.5
    assert abs(kept.mean().item() - density) < 4 * sigma
    rescaled = dare({"w": ones(200, 200)}, density=density, seed=0, **DARE | {"rescale": True})[
        "w"
    ].delta
    assert torch.allclose(rescaled, kept / density)


@pytest.mark.parametrize("density", [0.0, 1.5])
def test_dare_refuses_to_keep_nothing(density):
    with pytest.raises(ValueError, match=r"choose one in \(0, 1\]"):
        dare({"w": ones(2, 2)}, density=density, seed=0, **DARE)


def test_a_global_trim_sees_the_masks_that_the_merge_sees():
    """The threshold comes from a first pass over the module, the merge from a second one."""
    g = torch.Generator().manual_seed(0)
    updates = {"w": LowRank(torch.randn(1, 3, 30, generator=g), torch.randn(1, 40, 3, generator=g))}
    dropped = dare(updates, density=0.5, seed=3, **DARE)["w"].delta
    merged = dare_ties(
        updates,
        space="delta",
        density=0.5,
        rescale=False,
        seed=3,
        trim_density=0.25,
        granularity="global",
        counting="exact",
        total_parameters=None,
        merge="mean",
        scaling=1.0,
    )["w"].delta
    assert merged.count_nonzero() == 300
    assert torch.equal(merged[merged != 0], dropped[merged != 0])
    assert dropped.abs()[merged == 0].max() < merged[merged != 0].abs().min()


DELLA = {"space": "delta", "weights": None, "normalize": False, "scaling": 1.0, "seed": 0}


def test_della_keeps_larger_entries_more_often():
    """Rows of 1 ... 5: the keep probability grows from 0.3 to 0.7, and 1 / p restores the mean."""
    A = torch.arange(1.0, 6.0).view(1, 1, 5)
    updates = {"w": LowRank(A, torch.ones(1, 20_000, 1))}
    merged = della(updates, density=0.5, epsilon=0.2, rescale="inverse", **DELLA)["w"].delta
    share = (merged != 0).float().mean(0)
    assert torch.allclose(share, torch.linspace(0.3, 0.7, 5), atol=0.015)
    assert torch.allclose(merged.mean(0), A.view(5), rtol=0.04)
    kept = della(updates, density=0.5, epsilon=0.2, rescale="l1", **DELLA)["w"].delta
    assert kept.abs().sum().item() == pytest.approx(20_000 * 15, rel=1e-5)


def test_della_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match=r"density 0.1 \+- epsilon 0.2 must lie in"):
        della({"w": ones(2, 2)}, density=0.1, epsilon=0.2, rescale="l1", **DELLA)
    with pytest.raises(ValueError, match="rescale 'l2' is unknown"):
        della({"w": ones(2, 2)}, density=0.5, epsilon=0.2, rescale="l2", **DELLA)


def test_the_numbers_drawn_are_those_of_uniform():
    """Stored results depend on them, and on nothing that a release of torch may change unseen."""
    draw = dropping.draws(7, "a")
    generators = [dropping._generator(7, "a", task) for task in range(2)]
    for rows in (3, 3, 1):
        block = torch.zeros(2, rows, 5, dtype=torch.float64)
        expected = [torch.empty(rows, 5).uniform_(generator=g) for g in generators]
        assert torch.equal(draw(block), torch.stack(expected))


def test_places_of_a_rows_entries_at_any_precision():
    x = torch.rand(2, 3, 40, generator=torch.Generator().manual_seed(0))
    x[0, 0, :2] = torch.tensor([0.0, 1e-40])
    for magnitudes in (x, x.double()):
        places = dropping._order(magnitudes)
        assert torch.equal(magnitudes.gather(-1, places), magnitudes.sort(-1).values)


@pytest.mark.parametrize("rescale", ["inverse", "l1"])
def test_della_sorts_every_entry_once(monkeypatch, rescale):
    sorted_, order = [], dropping._order
    monkeypatch.setattr(dropping, "_order", lambda x: sorted_.append(x.numel()) or order(x))
    monkeypatch.setattr(streams, "BLOCK", 100)
    update = LowRank(torch.randn(2, 3, 10), torch.randn(2, 17, 3))
    assert della({"w": update}, density=0.5, epsilon=0.2, rescale=rescale, **DELLA)["w"].delta.any()
    assert sum(sorted_) == 2 * 17 * 10


def test_draws_take_no_fresh_memory():
    """With memory of its own for every block, the heap grows to several times the result."""
    draw = dropping.draws(0, "a")
    assert len({draw(torch.empty(2, 5, 10)).data_ptr() for _ in range(3)}) == 1
