import pytest
import torch
from adapters import SHAPES, adapters, grams, permuted, rank_of, regauged, repeated
from golden import dense, distance, load

from osrm_exp.lora import LowRank, stack
from osrm_exp.merging.regmean import lm_cocktail, regmean, regmean_pp

PLAIN = dict(off_diagonal=1.0, ridge=0.0, weights=None)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


@both_dtypes
@pytest.mark.parametrize("name", ["regmean", "regmean_reduced", "regmean_weighted"])
def test_regmean_golden(name, dtype):
    golden = load(name, dtype)
    options = golden.hyperparameters
    golden.check(
        regmean(
            golden.updates,
            golden.tensors["gram"],
            off_diagonal=options["off_diagonal_factor"],
            ridge=options["ridge"],
            weights=options["model_weights"],
        )
    )


def dense_regmean(deltas, moments, weights):
    left = sum(w * D @ G for w, D, G in zip(weights, deltas, moments))
    return left @ torch.linalg.inv(sum(w * G for w, G in zip(weights, moments)))


def test_regmean_factors_equal_the_dense_formula():
    updates, moments, weights = adapters((2, 4, 1)), grams(3), [0.5, 2.0, 1.0]
    merged = regmean(updates, moments, off_diagonal=1.0, ridge=0.0, weights=weights)
    for module, update in updates.items():
        expected = dense_regmean(update.delta, moments[module], weights)
        assert distance(merged[module], expected) < 1e-12
        assert merged[module].rank == 7


def test_regmean_solves_the_normal_equations():
    updates, moments = adapters(), grams(3)
    for module, merged in regmean(updates, moments, **PLAIN).items():
        residual = sum(
            (merged.delta - D) @ G for D, G in zip(updates[module].delta, moments[module])
        )
        assert residual.norm() < 1e-12


def test_regmean_is_the_mean_on_white_inputs():
    updates = adapters((2, 3, 4))
    white = {m: torch.eye(n).expand(3, n, n) for m, (_, n) in SHAPES.items()}
    for module, merged in regmean(
        updates, white, off_diagonal=0.9, ridge=1e-3, weights=None
    ).items():
        assert distance(merged, updates[module].delta.mean(0)) < 1e-14


def test_regmean_without_off_diagonals_is_a_mean_for_every_input_coordinate():
    updates, moments = adapters(), grams(3)
    for module, merged in regmean(
        updates, moments, off_diagonal=0.0, ridge=0.0, weights=None
    ).items():
        energy = moments[module].diagonal(dim1=1, dim2=2)
        expected = (updates[module].delta * energy[:, None]).sum(0) / energy.sum(0)
        assert distance(merged, expected) < 1e-12


def test_regmean_keeps_equal_experts_whatever_the_ridge():
    updates = repeated(adapters(), 3)
    for module, merged in regmean(
        updates, grams(3), off_diagonal=0.8, ridge=0.1, weights=None
    ).items():
        assert distance(merged, updates[module].delta[0]) < 1e-12


def test_regmean_of_one_task_is_its_adapter():
    updates = adapters((3,))
    for module, merged in regmean(
        updates, grams(1), off_diagonal=0.9, ridge=0.1, weights=None
    ).items():
        assert distance(merged, updates[module].delta[0]) < 1e-12


def test_regmean_averages_where_no_task_has_data():
    """Grams of rank 4 in 10 dimensions: with a ridge, unseen inputs meet the plain mean."""
    updates, moments = adapters(), grams(3, rows=4)
    moments = {m: G[:1].expand(3, -1, -1) for m, G in moments.items()}  # the same 4 rows for all
    for module, merged in regmean(
        updates, moments, off_diagonal=1.0, ridge=1e-8, weights=None
    ).items():
        unseen = torch.linalg.svd(moments[module][0]).Vh[4:].mT
        mean = updates[module].delta.mean(0)
        assert distance(dense(merged) @ unseen, mean @ unseen) < 1e-6


def test_regmean_does_not_depend_on_the_factors_or_the_order():
    updates, moments = adapters((2, 3, 4)), grams(3)
    merged, order = regmean(updates, moments, **PLAIN), [2, 0, 1]
    regauge = regmean(regauged(updates), moments, **PLAIN)
    reorder = regmean(permuted(updates, order), {m: G[order] for m, G in moments.items()}, **PLAIN)
    for module in updates:
        assert distance(regauge[module], merged[module]) < 1e-10
        assert distance(reorder[module], merged[module]) < 1e-12


def test_regmean_counts_a_task_that_does_not_adapt_a_module():
    updates, moments = adapters((3, 0, 2)), grams(3)
    merged = regmean(updates, moments, **PLAIN)
    for module, update in updates.items():
        assert rank_of(merged[module]) <= 5
        expected = dense_regmean(update.delta, moments[module], [1, 1, 1])
        assert distance(merged[module], expected) < 1e-12


def test_regmean_of_thirty_two_tasks_reads_every_gram_once():
    moments, read = grams(32), []

    class Once(dict):
        def __getitem__(self, module):
            read.append(module)
            return super().__getitem__(module)

    merged = regmean(adapters((1,) * 32, dtype=torch.float32), Once(moments), **PLAIN)
    assert read == list(moments)
    assert all(
        update.A.dtype == torch.float32 and update.A.isfinite().all() for update in merged.values()
    )


def test_regmean_says_how_to_solve_a_singular_gram():
    with pytest.raises(ValueError, match=r"layer0\.q is singular: set ridge above 0"):
        regmean(adapters((2,)), grams(1, rows=3), **PLAIN)


def test_regmean_without_any_input_is_the_mean():
    updates = adapters()
    silent = {m: torch.zeros_like(G) for m, G in grams(3).items()}
    for module, merged in regmean(
        updates, silent, off_diagonal=1.0, ridge=1e-6, weights=None
    ).items():
        assert distance(merged, updates[module].delta.mean(0)) < 1e-12


def test_regmean_refuses_grams_of_other_tasks():
    with pytest.raises(ValueError, match=r"gram of layer0\.q is \[2, 10, 10\]"):
        regmean(adapters(), grams(2), **PLAIN)


class Chain:
    """Linear blocks `x -> x + (W + delta) x`, one module each, on every task's inputs."""

    def __init__(self, updates, inputs, seed=3):
        g = torch.Generator().manual_seed(seed)
        self.blocks = [[module] for module in updates]
        self.inputs, width = inputs, inputs[0].shape[1]
        self.base = {m: torch.randn(width, width, generator=g).double() / 4 for m in updates}
        self.asked = []

    def __call__(self, merged, modules):
        self.asked.append((tuple(merged), tuple(modules)))
        rows = self.inputs
        for (module,) in self.blocks:
            if module == modules[0]:
                return {module: torch.stack([X.mT @ X / len(X) for X in rows])}
            W = self.base[module] + dense(merged[module])
            rows = [X + X @ W.mT for X in rows]


def square_adapters(modules, tasks=3, width=6):
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    tasks = {m: [LowRank(draw(2, width), draw(width, 2)) for _ in range(tasks)] for m in modules}
    return {m: stack(updates) for m, updates in tasks.items()}, [draw(30, width) for _ in range(3)]


def test_regmean_pp_with_one_block_is_regmean():
    updates, moments = adapters(), grams(3)

    class Whole:
        blocks = (tuple(updates),)

        def __call__(self, merged, modules):
            return moments

    expected = regmean(updates, moments, **PLAIN)
    for module, merged in regmean_pp(updates, Whole(), **PLAIN).items():
        assert distance(merged, expected[module]) == 0


def test_regmean_pp_sees_each_block_behind_the_merged_ones():
    updates, inputs = square_adapters(["first", "second", "third"])
    chain = Chain(updates, inputs)
    merged = regmean_pp(updates, chain, **PLAIN)
    assert chain.asked == [
        ((), ("first",)),
        (("first",), ("second",)),
        (("first", "second"), ("third",)),
    ]
    rows = inputs
    for module, update in updates.items():
        moments = [X.mT @ X / len(X) for X in rows]
        expected = dense_regmean(update.delta, moments, [1, 1, 1])
        assert distance(merged[module], expected) < 1e-12
        rows = [X + X @ (chain.base[module] + expected).mT for X in rows]
    assert list(merged) == list(updates)


def test_regmean_pp_first_averages_what_lies_outside_the_blocks():
    updates, inputs = square_adapters(["embedding", "first", "second"])
    chain = Chain({m: u for m, u in updates.items() if m != "embedding"}, inputs)
    merged = regmean_pp(updates, chain, **PLAIN)
    assert chain.asked[0] == (("embedding",), ("first",))
    assert distance(merged["embedding"], updates["embedding"].delta.mean(0)) < 1e-14


def test_regmean_pp_refuses_blocks_without_adapters():
    updates, inputs = square_adapters(["first", "second"])
    with pytest.raises(ValueError, match="second"):
        regmean_pp({"first": updates["first"]}, Chain(updates, inputs), **PLAIN)


@both_dtypes
def test_lm_cocktail_golden(dtype):
    golden = load("lm_cocktail", dtype)
    temperature = golden.hyperparameters["temperature"]
    golden.check(lm_cocktail(golden.updates, golden.tensors["losses"], temperature=temperature))


def test_lm_cocktail_weights():
    updates = adapters((2, 3, 4))
    means = {m: u.delta.mean(0) for m, u in updates.items()}

    def check(losses, temperature, expected, tolerance=1e-12):
        for module, merged in lm_cocktail(updates, losses, temperature=temperature).items():
            assert distance(merged, expected[module]) < tolerance

    check([2.0, 2.0, 2.0], 0.7, means)
    check([1.0, 3.0, 9.0], 1e9, means, 1e-8)
    check([3.0, 1.0, 9.0], 1e-3, {m: u.delta[1] for m, u in updates.items()})
    check([3.0, 1.0, 2.0], 2.0, lm_cocktail(updates, [103.0, 101.0, 102.0], temperature=2.0))


def test_lm_cocktail_base_model_takes_its_share():
    updates = adapters((3,))
    for module, merged in lm_cocktail(updates, [1.0, 1.0], temperature=5.0).items():
        assert distance(merged, updates[module].delta[0] / 2) < 1e-14
    with pytest.raises(ValueError, match="3 losses for 1 tasks"):
        lm_cocktail(updates, [1.0, 1.0, 1.0], temperature=5.0)
