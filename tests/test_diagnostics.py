from math import sqrt

import pytest
import torch

from osrm_exp.diagnostics import diagnose, drifts, kept, overlaps, responses
from osrm_exp.lora import LowRank, stack

OUT, IN = 5, 12


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def tasks(ranks=(3, 2, 3)):
    return [
        LowRank(normal(r, IN, seed=i), normal(OUT, r, seed=10 + i)) for i, r in enumerate(ranks)
    ]


def values(rows, metric):
    return {(r["task"], r["other"]): r["value"] for r in rows if r["metric"] == metric}


def test_responses_are_norms_over_the_rows():
    updates, inputs = tasks(), [normal(50, IN, seed=20 + i) * (i + 1) for i in range(3)]
    grams = torch.stack([H.T @ H / len(H) for H in inputs])
    rows = list(responses(stack(updates), grams))
    assert len(rows) == 2 * 9
    for (t, s), value in values(rows, "response_A").items():
        expected = (updates[t].A @ inputs[s].T).norm() / inputs[s].norm()
        assert value == pytest.approx(expected.item(), rel=1e-9)
    for (t, s), value in values(rows, "response_BA").items():
        expected = (updates[t].delta @ inputs[s].T).norm() / inputs[s].norm()
        assert value == pytest.approx(expected.item(), rel=1e-9)


def test_random_orthonormal_rows_respond_to_white_inputs_by_its_share_of_the_width():
    A = torch.linalg.qr(normal(IN, 3)).Q.T
    rows = responses(stack([LowRank(A, normal(OUT, 3))]), torch.eye(IN)[None].double())
    assert values(rows, "response_A") == {(0, 0): pytest.approx(sqrt(3 / IN))}


def test_overlap_is_zero_for_orthogonal_one_for_contained_and_ignores_scale():
    axes = torch.eye(IN, dtype=torch.float64)
    B = normal(OUT, 3)
    updates = [
        LowRank(axes[:3], B),
        LowRank(normal(3, 3, seed=1) @ axes[:3], 5 * B),  # the same spaces in another basis
        LowRank(axes[1:3], B[:, :2]),  # within the first
        LowRank(axes[3:6], torch.zeros(OUT, 3, dtype=torch.float64)),  # orthogonal; B untrained
    ]
    rows = list(overlaps(stack(updates)))
    in_A, in_B = values(rows, "overlap_A"), values(rows, "overlap_B")
    for pair in ((0, 1), (0, 2), (1, 2)):
        assert in_A[pair] == pytest.approx(1) and in_B[pair] == pytest.approx(1)
    assert all(in_A[i, 3] == pytest.approx(0, abs=1e-12) for i in range(3))
    assert in_B.keys() == {(0, 1), (0, 2), (1, 2)}


def test_overlap_is_the_frobenius_formula_for_orthonormal_rows():
    first, second = (torch.linalg.qr(normal(IN, 3, seed=s)).Q.T for s in (0, 1))
    B = normal(OUT, 3)
    rows = overlaps(stack([LowRank(first, B), LowRank(second, B)]))
    expected = ((first @ second.T) ** 2).sum().item() / 3
    assert values(rows, "overlap_A") == {(0, 1): pytest.approx(expected)}


def test_drift_is_relative_to_the_start():
    updates = tasks((2, 1))
    starts = stack([LowRank(u.A / 1.5, u.B) for u in updates]).A
    rows = list(drifts(stack(updates), starts))
    assert values(rows, "drift_A") == {(0, None): pytest.approx(0.5), (1, None): pytest.approx(0.5)}


def test_kept_energy_is_one_until_a_moves_and_none_when_it_leaves_its_rows():
    axes, B = torch.eye(IN, dtype=torch.float64), normal(OUT, 2)
    stays = LowRank(normal(2, 2) @ axes[:2], B)  # other rows, same space
    half = LowRank(axes[[0, 5]], torch.ones(OUT, 2, dtype=torch.float64))
    leaves = LowRank(axes[5:7], B)
    untrained = LowRank(axes[:2], torch.zeros_like(B))
    starts = axes[:2].expand(4, 2, IN)
    found = values(kept(stack([stays, half, leaves, untrained]), starts), "kept_energy")
    assert found.keys() == {(0, None), (1, None), (2, None)}
    assert list(found.values()) == [pytest.approx(1), pytest.approx(0.5), pytest.approx(0)]


def test_diagnose_names_modules_tasks_and_stages():
    updates = {"q": stack(tasks()), "v": stack(tasks((3, 0, 1)))}
    grams = {name: torch.eye(IN).expand(3, IN, IN) for name in updates}
    starts = {name: u.A for name, u in updates.items()}
    rows = list(diagnose(updates, starts, grams, ["rte", "sst2", "cola"]))
    keys = {"module", "stage", "metric", "task", "other", "value"}
    assert all(row.keys() == keys for row in rows)
    of = {(r["module"], r["stage"], r["metric"], r["task"], r["other"]): r["value"] for r in rows}
    assert len(of) == len(rows)
    assert of["v", "end", "response_BA", "sst2", "rte"] == 0  # sst2 does not adapt v
    assert ("v", "end", "overlap_A", "rte", "sst2") not in of
    assert ("v", "end", "overlap_A", "rte", "cola") in of
    assert of["q", "end", "drift_A", "sst2", None] == 0
    assert ("v", "end", "drift_A", "sst2", None) not in of
    at_start = {metric for _, stage, metric, _, _ in of if stage == "start"}
    assert at_start == {"response_A", "overlap_A"}  # B is zero
    start, end = (of["q", stage, "response_A", "rte", "cola"] for stage in ("start", "end"))
    assert start == end > 0  # A did not move
