import pytest
import torch
from golden import dense, distance, load
from synthetic import adapters, changed, orthogonal

from osrm_exp.lora import LowRank, stack
from osrm_exp.merging import opcm, opcm_dense

F64 = torch.float64
dtypes = pytest.mark.parametrize("dtype", [F64, torch.float32])


def norm(updates) -> torch.Tensor:
    """Frobenius norm over all modules."""
    return sum(dense(u).norm() ** 2 for u in updates.values()).sqrt()


def reference(updates, alpha):
    """The recursion on dense deltas, the diagonal ended at the rank of the merge."""
    deltas = {m: u.delta for m, u in updates.items()}
    norms = sum(d.flatten(1).norm(dim=1) ** 2 for d in deltas.values()).sqrt()
    merged, shrunk = {m: d[0] for m, d in deltas.items()}, 1.0
    for t in range(1, len(norms)):
        for module, W in merged.items():
            U, S, Vh = torch.linalg.svd(W)
            rank = torch.linalg.matrix_rank(W, rtol=1e-9)
            k = next(i for i in range(len(S)) if S[: i + 1].sum() / S.sum() > alpha)
            P = U.mT @ deltas[module][t] @ Vh.mT
            P[:k, :k] = 0
            P.diagonal()[:rank] = 0
            merged[module] = shrunk * W + U @ P @ Vh
        shrunk = norm(merged) / norms[: t + 1].mean()
        merged = {m: W / shrunk for m, W in merged.items()}
    return merged


@dtypes
@pytest.mark.parametrize("space", ["delta", "knots", "core"])
@pytest.mark.parametrize("name", ["opcm", "opcm_full_rank"])
def test_golden(name, space, dtype):
    golden = load(name, dtype)
    options = golden.hyperparameters
    order = [golden.tasks.index(task) for task in options["order"]]
    updates = {m: stack([u.unstack()[t] for t in order]) for m, u in golden.updates.items()}
    golden.check(opcm(updates, space=space, alpha=options["alpha"], seed=None))
    if name == "opcm_full_rank":
        golden.check(opcm_dense(updates, alpha=options["alpha"], seed=None))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.6, 0.95])
def test_equals_the_dense_recursion(alpha):
    updates = adapters((2, 1, 2, 1))
    merged, expected = (
        opcm(updates, space="delta", alpha=alpha, seed=None),
        reference(updates, alpha),
    )
    assert all(distance(merged[m], expected[m]) < 1e-11 for m in updates)


def test_norm_over_all_modules_is_the_mean_of_the_tasks():
    updates = adapters((2, 3, 1))
    merged = opcm(updates, space="delta", alpha=0.5, seed=None)
    norms = [norm({m: u.unstack()[t] for m, u in updates.items()}) for t in range(3)]
    torch.testing.assert_close(norm(merged), sum(norms) / 3)


def test_orthogonal_tasks_are_summed_up_to_scale():
    updates = orthogonal()
    merged = dense(opcm(updates, space="delta", alpha=0.5, seed=None)["w"])
    total = updates["w"].delta.sum(0)
    assert distance(merged / merged.norm(), total / total.norm()) < 1e-12


def test_seed_chooses_an_order_and_null_keeps_it():
    updates = adapters((2, 2, 2))
    seeded = [opcm(updates, space="delta", alpha=0.5, seed=s)["layer0.q"] for s in range(6)]
    again = opcm(updates, space="delta", alpha=0.5, seed=0)["layer0.q"]
    given = opcm(updates, space="delta", alpha=0.5, seed=None)["layer0.q"]
    order = torch.randperm(3, generator=torch.Generator().manual_seed(1)).tolist()
    turned = {m: stack([u.unstack()[t] for t in order]) for m, u in updates.items()}
    assert torch.equal(dense(again), dense(seeded[0]))
    assert max(distance(other, given) for other in seeded) > 1e-3
    in_order = opcm(turned, space="delta", alpha=0.5, seed=None)["layer0.q"]
    assert distance(seeded[1], in_order) < 1e-12


def test_starts_after_untrained_tasks():
    updates = adapters((2, 2, 2))
    late = changed(updates, lambda t, u: u if t else LowRank(u.A, torch.zeros_like(u.B)))
    absent = changed(updates, lambda t, u: u if t else LowRank(u.A[:0], u.B[:, :0]))
    merged, other = (opcm(u, space="delta", alpha=0.5, seed=None) for u in (late, absent))
    assert all(dense(u).isfinite().all() and dense(u).any() for u in merged.values())
    assert all(distance(merged[m], other[m]) < 1e-12 for m in updates)


def test_shared_a_is_stable():
    updates, g = adapters((2, 2, 2)), torch.Generator().manual_seed(3)
    updates = {m: LowRank(u.A[:1].expand_as(u.A).clone(), u.B) for m, u in updates.items()}
    noise = {
        m: 1 + 1e-13 * torch.randn(u.A.shape, generator=g, dtype=F64) for m, u in updates.items()
    }
    moved = {m: LowRank(u.A * noise[m], u.B) for m, u in updates.items()}
    merged, other = (opcm(u, space="delta", alpha=0.5, seed=None) for u in (updates, moved))
    for module, update in merged.items():
        assert distance(other[module], update) < 1e-9
        assert torch.linalg.matrix_rank(dense(update), rtol=1e-6) == 2


def test_thirty_two_tasks():
    updates = adapters((2,) * 32)
    for module, update in opcm(updates, space="delta", alpha=0.5, seed=0).items():
        assert dense(update).isfinite().all() and update.rank <= min(updates[module].shape)


@pytest.mark.parametrize("alpha", [-0.1, 1.0, 1.5])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match=f"alpha is {alpha}"):
        opcm(adapters(), space="delta", alpha=alpha, seed=None)
