from math import sqrt
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from osrm_exp import inits
from osrm_exp.inits import eigen
from osrm_exp.record import build
from osrm_exp.spec import Init

WIDTH, RANK = 24, 3
ARMS = sorted((Path(__file__).parents[2] / "conf/init").glob("*.yaml"))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(count, seed, width=WIDTH):
    """Inputs with a mean, unequal directions and full rank if `count` allows."""
    g = generator(seed)
    x = torch.randn(count, width, generator=g, dtype=torch.float64)
    return (x + 1) @ torch.randn(width, width, generator=g, dtype=torch.float64)


def grams(count, tasks=3, seed=0):
    """`[task, in, in]` of tasks with `count` rows each."""
    samples = [rows(count, seed + task) for task in range(tasks)]
    return torch.stack([x.T @ x / count for x in samples])


def energy(A, G):
    return torch.trace(A.double() @ G @ A.double().T).item()


def overlap(A, B):
    """Between row spaces: 1 if equal, 0 if orthogonal."""
    A, B = (torch.linalg.qr(x.double().T)[0] for x in (A, B))
    return ((A.T @ B) ** 2).sum().item() / A.shape[1]


def init_of(file) -> Init:
    return build(Init, OmegaConf.to_container(OmegaConf.load(file)), "init")


def from_yaml(file, own, others, seed=0):
    init, data = init_of(file), {}
    for key, need in init.statistics.items():
        tensors = own[None] if need.tasks == "own" else others
        if need.call.name.endswith("mean"):
            tensors = torch.stack([torch.linalg.eigh(G)[1][:, -1] for G in tensors])
        data[key] = tensors[0] if need.tasks == "own" else tensors
    return init.call(WIDTH, RANK, generator=generator(seed), **data)


@pytest.mark.parametrize("file", ARMS, ids=lambda file: file.stem)
def test_every_arm_is_a_document_and_gives_its_rows(file):
    init = init_of(file)
    assert file.read_text().startswith("# ")
    if init.call is None:
        assert isinstance(init.peft, str)
        return
    assert init.peft is True
    G = grams(200)
    A = from_yaml(file, G[0], G[1:])
    assert A.shape == (RANK, WIDTH) and A.dtype == torch.float32 and A.isfinite().all()
    assert torch.equal(A, from_yaml(file, G[0], G[1:]))
    if file.stem not in ("gaussian", "kaiming", "lori", "head_only"):
        torch.testing.assert_close(A @ A.T, torch.eye(RANK), atol=1e-5, rtol=0)


def test_arms_exist():
    assert len(ARMS) >= 15


def test_osrm_has_the_least_energy_of_all_orthonormal_rows():
    others = grams(200)
    G = others.mean(0)
    A = inits.osrm(WIDTH, RANK, generator=generator(), others=others, tie_break="random")
    least = torch.linalg.eigvalsh(G)[:RANK].sum().item()
    assert energy(A, G) == pytest.approx(least, rel=1e-5)
    for seed in range(20):
        assert energy(A, G) < energy(inits.orthonormal(WIDTH, RANK, generator=generator(seed)), G)
    worst = inits.osrm_largest(WIDTH, RANK, generator=generator(), others=others)
    assert energy(worst, G) == pytest.approx(torch.linalg.eigvalsh(G)[-RANK:].sum().item())


def test_osrm_minimises_the_norm_of_the_stacked_inputs():
    """The paper's `||A H'||_F` with equal rows a task, and `||B A X'||_F` by the gram."""
    samples = [rows(200, seed) for seed in range(3)]
    H = torch.cat(samples)
    others = torch.stack([x.T @ x / 200 for x in samples])
    A = inits.osrm(WIDTH, RANK, generator=generator(), others=others, tie_break="random").double()
    S = H.T @ H / (len(H) - 1)
    eigenvalues = torch.linalg.eigvalsh(S)
    assert ((A @ H.T) ** 2).sum() / (len(H) - 1) == pytest.approx(
        eigenvalues[:RANK].sum().item(), rel=1e-5
    )
    B = torch.randn(7, RANK, generator=generator(), dtype=torch.float64)
    assert ((B @ A @ H.T) ** 2).sum().item() == pytest.approx(
        (len(H) - 1) * torch.trace(B @ A @ S @ A.T @ B.T).item()
    )


def test_osrm_weighs_tasks_equally():
    a, b = grams(200, tasks=2)
    args = {"generator": generator(), "tie_break": "random"}
    both = inits.osrm(WIDTH, RANK, others=torch.stack([a, b]), **args)
    once = inits.osrm(WIDTH, RANK, others=((a + b) / 2)[None], **args)
    torch.testing.assert_close(both, once)


@pytest.mark.parametrize("tie_break", ["own_energy", "random", "lapack_last"])
def test_where_osrm_is_not_unique_it_says_so_and_maps_every_row_to_zero(tie_break):
    own, others = grams(200, tasks=1)[0], grams(4, seed=5)  # 12 rows in 24 dimensions
    with pytest.warns(UserWarning, match=rf"{tie_break} chose in a null space of 12 dimensions"):
        A = inits.osrm(
            WIDTH, RANK, generator=generator(), others=others, own=own, tie_break=tie_break
        )
    torch.testing.assert_close(A @ A.T, torch.eye(RANK), atol=1e-5, rtol=0)
    assert energy(A, others.mean(0)) < 1e-9 * others.mean(0).trace()


def test_ties_break_as_they_are_told(recwarn):
    own, others = grams(200, tasks=1)[0], grams(4, seed=5)

    def osrm(tie_break, seed=0):
        return inits.osrm(
            WIDTH, RANK, generator=generator(seed), others=others, own=own, tie_break=tie_break
        )

    assert torch.equal(osrm("random"), osrm("random"))
    assert overlap(osrm("random"), osrm("random", seed=1)) < 0.9
    assert torch.equal(osrm("own_energy"), osrm("own_energy", seed=1))
    loud = energy(osrm("own_energy"), own)
    assert all(loud > energy(osrm("random", seed), own) for seed in range(20))


@pytest.mark.filterwarnings("ignore:OSRM's minimum")
def test_a_random_tie_break_asks_for_no_basis_of_the_null_space(monkeypatch):
    """LAPACK returns another one on another processor; `A` must not be another one for that."""
    args = {"others": grams(4, seed=5), "tie_break": "random"}
    A = inits.osrm(WIDTH, RANK, generator=generator(), **args)
    eigh = torch.linalg.eigh

    def turned(gram):
        values, vectors = eigh(gram)
        null = values <= eigen.rounding(gram)
        turn = torch.linalg.qr(rows(int(null.sum()), 9, int(null.sum())))[0]
        vectors[:, null] = vectors[:, null] @ turn
        return values, vectors

    monkeypatch.setattr(torch.linalg, "eigh", turned)
    again = inits.osrm(WIDTH, RANK, generator=generator(), **args)
    torch.testing.assert_close(again, A, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("error")
def test_a_unique_minimum_needs_no_tie_break():
    """Nullity equal to the rank is still unique, as a subspace."""
    args = {"generator": generator(), "tie_break": "random"}
    X = torch.linalg.qr(rows(WIDTH - RANK, 0).T)[0].T
    A = inits.osrm(WIDTH, RANK, others=(X.T @ X)[None], **args)
    assert (A.double() @ X.T).abs().max() < 1e-6
    stored = grams(200).float()  # as a cache may keep it
    assert overlap(
        inits.osrm(WIDTH, RANK, others=stored, **args),
        inits.osrm(WIDTH, RANK, others=stored.double(), **args),
    ) == pytest.approx(1, abs=1e-6)
    assert inits.osrm(WIDTH, WIDTH, others=stored, **args).shape == (WIDTH, WIDTH)


def dead(coordinates, tasks=3, n=200, seed=5):
    """Grams of inputs some of whose coordinates are zero in every row."""
    G = grams(n, seed=seed, tasks=tasks)
    G[:, coordinates], G[:, :, coordinates] = 0, 0
    return G


@pytest.mark.filterwarnings("ignore:OSRM's minimum", "ignore:LoRA-Null's A")
@pytest.mark.parametrize("coordinates", [[3], [3, 7], list(range(RANK + 2))])
def test_a_dead_coordinate_that_is_chosen_is_told(coordinates):
    """It has no energy at all, so it comes first; its row of A never learns."""
    args, lost = {"generator": generator(), "tie_break": "random"}, min(len(coordinates), RANK)
    said = f"{lost} of {RANK} rows of A lie along dead coordinates.* of the other tasks"
    with pytest.warns(UserWarning, match=said):
        A = inits.osrm(WIDTH, RANK, others=dead(coordinates), **args)
    assert (A[:, coordinates] ** 2).sum() == pytest.approx(lost, abs=1e-5)
    own = dead(coordinates, tasks=1, seed=0)[0]
    said = f"{lost} of {RANK} rows of A lie along dead coordinates.* of the task that"
    with pytest.warns(UserWarning, match=said):
        inits.lora_null(WIDTH, RANK, generator=generator(), own=own, others=dead(coordinates))


@pytest.mark.filterwarnings("error")
def test_what_is_dead_for_the_others_alone_is_no_loss():
    alive, others = grams(200, tasks=1)[0], dead([3, 7])
    for init, options in {
        inits.osrm: {"own": alive, "tie_break": "own_energy"}, inits.lora_null: {"own": alive},
        inits.osrm_own: {"own": alive, "energy": 0.05},
        inits.contrastive: {"own": alive, "ridge": 1e-6},
    }.items():  # fmt: skip
        init(WIDTH, RANK, generator=generator(), others=others, **options)
    inits.osrm(WIDTH, RANK, generator=generator(), others=grams(200), tie_break="random")


def test_osrm_of_a_wide_module_is_the_same(monkeypatch):
    """Above `eigen.WIDE` another solver answers, and nothing else changes."""
    x = torch.randn(900, 300, generator=generator(), dtype=torch.float64)
    x *= torch.logspace(0, 3, 300, dtype=torch.float64)
    others = (x.T @ x / 900)[None]
    args = {"generator": generator(), "others": others, "tie_break": "random"}
    full = inits.osrm(300, RANK, **args)
    monkeypatch.setattr(eigen, "WIDE", 0)
    torch.testing.assert_close(inits.osrm(300, RANK, **args), full, atol=1e-5, rtol=0)


def test_released_rows_are_orthogonal_to_every_mean_and_nearly_the_last_axes():
    means = rows(7, seed=0, width=256).float()
    A = inits.osrm_released(256, 8, generator=generator(), others=means)
    torch.testing.assert_close(A @ A.T, torch.eye(8), atol=1e-5, rtol=0)
    assert (A @ means.T).abs().max() < 1e-4 * means.norm(dim=1).max()
    axes = inits.last_coordinates(256, 8, generator=generator())
    other = inits.osrm_released(256, 8, generator=generator(), others=rows(7, 9, 256).float())
    assert overlap(A, axes) > 0.8 and overlap(A, other) > 0.8  # of tasks that share nothing


def test_osrm_own_is_quiet_for_the_others_and_loud_for_itself():
    own, others = grams(200, tasks=1)[0], grams(200, seed=5)
    G = others.mean(0)
    values = torch.linalg.eigvalsh(G)
    for share in (0.05, 0.2):
        A = inits.osrm_own(WIDTH, RANK, generator=generator(), own=own, others=others, energy=share)
        assert energy(A, G) <= share * values.sum().item()
        osrm = inits.osrm(WIDTH, RANK, generator=generator(), others=others, tie_break="random")
        assert energy(A, own) > energy(osrm, own)
    nothing = inits.osrm_own(WIDTH, RANK, generator=generator(), own=own, others=others, energy=0.0)
    assert overlap(nothing, osrm) == pytest.approx(1, abs=1e-6)  # never fewer than rank directions
    everything = inits.osrm_own(
        WIDTH, RANK, generator=generator(), own=own, others=others, energy=1.0
    )
    eva = inits.own_largest(WIDTH, RANK, generator=generator(), own=own)
    torch.testing.assert_close(everything, eva, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:OSRM's minimum")
def test_contrastive_lies_between_osrm_own_and_eva():
    own, others = grams(200, tasks=1)[0], grams(4, seed=5)

    def contrastive(ridge, others=others):
        return inits.contrastive(
            WIDTH, RANK, generator=generator(), own=own, others=others, ridge=ridge
        )

    quiet = inits.osrm_own(WIDTH, RANK, generator=generator(), own=own, others=others, energy=0.0)
    tied = inits.osrm(
        WIDTH, RANK, generator=generator(), own=own, others=others, tie_break="own_energy"
    )
    torch.testing.assert_close(quiet, tied, atol=1e-5, rtol=0)
    assert overlap(contrastive(1e-8), quiet) == pytest.approx(1, abs=1e-5)
    eva = inits.own_largest(WIDTH, RANK, generator=generator(), own=own)
    assert overlap(contrastive(1e8), eva) == pytest.approx(1, abs=1e-5)
    assert overlap(contrastive(1.0), quiet) < 0.99
    # the best single direction has the best ratio of all
    G = grams(200, seed=5)
    best = inits.contrastive(WIDTH, 1, generator=generator(), own=own, others=G, ridge=1e-12)
    for seed in range(20):
        other = inits.orthonormal(WIDTH, 1, generator=generator(seed))
        assert energy(best, own) / energy(best, G.mean(0)) > energy(other, own) / energy(
            other, G.mean(0)
        )


def test_lora_null_says_where_rounding_chooses(recwarn):
    own, others = grams(200, tasks=1)[0], grams(200, seed=5)
    inits.lora_null(WIDTH, RANK, generator=generator(), own=own, others=others)
    assert not recwarn
    few = grams(3, tasks=4)  # 12 rows in 24 dimensions
    with pytest.warns(UserWarning, match="not unique at rank"):
        inits.lora_null(WIDTH, RANK, generator=generator(), own=few[0], others=few[1:])


def test_lora_null_is_the_same_for_all_tasks():
    G = grams(200)
    first = inits.lora_null(WIDTH, RANK, generator=generator(), own=G[0], others=G[1:])
    second = inits.lora_null(WIDTH, RANK, generator=generator(), own=G[1], others=G[[0, 2]])
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def test_random_arms_have_their_distributions():
    width, rank = 4096, 8
    gaussian = inits.gaussian(width, rank, generator=generator())
    assert gaussian.std().item() == pytest.approx(1 / rank, rel=0.02)
    kaiming = inits.kaiming(width, rank, generator=generator())
    assert kaiming.abs().max().item() == pytest.approx(1 / sqrt(width), rel=0.01)
    layer = torch.nn.Linear(width, rank, bias=False)
    torch.nn.init.kaiming_uniform_(layer.weight, a=sqrt(5))
    assert kaiming.std().item() == pytest.approx(layer.weight.std().item(), rel=0.02)
    A, B = (inits.orthonormal(64, RANK, generator=generator(seed)) for seed in (0, 1))
    torch.testing.assert_close(A @ A.T, torch.eye(RANK), atol=1e-6, rtol=0)
    assert overlap(A, B) < 0.5


def test_row_norm_makes_arms_comparable():
    A = inits.kaiming(1024, 8, generator=generator())
    assert inits.row_norm(A, None) is A
    for norm, expected in ((1, 1.0), (0.5, 0.5), ("gaussian", 4.0), ("kaiming", 0.57735)):
        scaled = inits.row_norm(A, norm)
        torch.testing.assert_close(scaled.norm(dim=1), torch.full((8,), expected))
        assert overlap(scaled, A) == pytest.approx(1)
    drawn = inits.gaussian(1024, 8, generator=generator()).norm(dim=1).mean().item()
    assert drawn == pytest.approx(4.0, rel=0.02)
    with pytest.raises(ValueError, match="row_norm is 'paper'"):
        inits.row_norm(A, "paper")


def test_what_has_no_answer_is_refused():
    G = grams(200)
    some = {"generator": generator(), "others": G[1:]}
    for init, more in (
        (inits.osrm, {"tie_break": "random"}),
        (inits.osrm_largest, {}),
        (inits.osrm_own, {"own": G[0], "energy": 0.0}),
        (inits.contrastive, {"own": G[0], "ridge": 1.0}),
        (inits.lora_null, {"own": G[0]}),
    ):
        with pytest.raises(ValueError, match="no 25 orthogonal directions in 24 dimensions"):
            init(WIDTH, WIDTH + 1, **some, **more)
    with pytest.raises(ValueError, match="tie_break is 'first'"):
        inits.osrm(WIDTH, RANK, **some, tie_break="first")
    with pytest.raises(ValueError, match="needs the statistic `own`"):
        inits.osrm(WIDTH, RANK, **some, tie_break="own_energy")
    with pytest.raises(ValueError, match="ridge is 0"):
        inits.contrastive(WIDTH, RANK, **some, own=G[0], ridge=0.0)
