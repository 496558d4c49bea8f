import pytest
import torch
from golden import distance, load
from synthetic import adapters

from osrm_exp.lora import LowRank
from osrm_exp.merging import iso_c, iso_c_dense, iso_cts, iso_cts_dense, opcm, opcm_dense, tsv_dense

dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
DENSE = {
    "iso_c": lambda u: iso_c_dense(u, scaling=1.0),
    "iso_cts": lambda u: iso_cts_dense(u, common_space_fraction=0.8, scaling=1.0),
    "tsv": lambda u: tsv_dense(u, scaling=1.0),
    "opcm": lambda u: opcm_dense(u, alpha=0.5, seed=None),
}
LOW = {"layer0.q": (24, 20)}  # larger than the sum of the ranks
FULL = {"layer0.q": (5, 6)}  # smaller


@dtypes
def test_iso_c_golden(dtype):
    golden = load("iso_c_dense", dtype)
    golden.check(iso_c_dense(golden.updates, scaling=golden.hyperparameters["lambda"]))


@dtypes
def test_iso_cts_golden(dtype):
    golden = load("iso_cts_dense", dtype)
    options = golden.hyperparameters
    golden.check(
        iso_cts_dense(
            golden.updates,
            common_space_fraction=options["common_space_fraction"],
            scaling=options["lambda"],
        )
    )


@dtypes
def test_tsv_golden(dtype):
    golden = load("tsv_dense", dtype)
    golden.check(tsv_dense(golden.updates, scaling=golden.hyperparameters["lambda"]))


@pytest.mark.parametrize("merge", DENSE.values(), ids=list(DENSE))
def test_noise_in_null_directions_changes_the_result(merge):
    """Why these forms carry a name of their own."""
    updates, g = adapters((2, 2, 2), shapes=LOW), torch.Generator().manual_seed(0)
    u = updates["layer0.q"]
    noise = 1 + 1e-13 * torch.randn(u.A.shape, generator=g, dtype=u.A.dtype)
    moved = merge({"layer0.q": LowRank(u.A * noise, u.B)})
    assert distance(moved["layer0.q"], merge(updates)["layer0.q"]) > 0.01


def test_equal_to_the_core_forms_where_the_sum_has_full_rank():
    updates = adapters((2, 2, 2), shapes=FULL)
    own = {"common_space_fraction": 0.4, "scaling": 1.0}  # leaves every task a direction
    pairs = [
        (DENSE["iso_c"](updates), iso_c(updates, space="delta", scaling=1.0)),
        (iso_cts_dense(updates, **own), iso_cts(updates, space="delta", **own)),
    ]
    for dense, core in pairs:
        assert distance(dense["layer0.q"], core["layer0.q"]) < 1e-10


def test_opcm_equals_the_core_form_where_every_task_has_full_rank():
    updates = adapters((5, 5, 5), shapes=FULL)
    core = opcm(updates, space="delta", alpha=0.5, seed=None)
    assert distance(DENSE["opcm"](updates)["layer0.q"], core["layer0.q"]) < 1e-10
