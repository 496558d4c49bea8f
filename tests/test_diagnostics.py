import json
from math import sqrt

import pandas as pd
import pytest
import torch

from osrm_exp.diagnostics import diagnose, drifts, kept, overlaps, responses, summary, tidy
from osrm_exp.lora import LowRank, stack

OUT, IN = 5, 12


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def tasks(ranks=(3, 2, 3)):
    return [
        LowRank(normal(r, IN, seed=i), normal(OUT, r, seed=10 + i)) for i, r in enumerate(ranks)
    ]


def test_responses_are_norms_over_the_rows():
    updates, inputs = tasks(), [normal(50, IN, seed=20 + i) * (i + 1) for i in range(3)]
    grams = torch.stack([H.T @ H / len(H) for H in inputs])
    found = responses(stack(updates), grams)
    for t, update in enumerate(updates):
        for s, H in enumerate(inputs):
            expected = (update.A @ H.T).norm() / H.norm()
            assert found["response_A"][t, s].item() == pytest.approx(expected.item(), rel=1e-9)
            expected = (update.delta @ H.T).norm() / H.norm()
            assert found["response_BA"][t, s].item() == pytest.approx(expected.item(), rel=1e-9)


def test_random_orthonormal_rows_respond_to_white_inputs_by_its_share_of_the_width():
    A = torch.linalg.qr(normal(IN, 3)).Q.T
    found = responses(stack([LowRank(A, normal(OUT, 3))]), torch.eye(IN)[None].double())
    assert found["response_A"].tolist() == [[pytest.approx(sqrt(3 / IN))]]


def test_overlap_is_zero_for_orthogonal_one_for_contained_and_ignores_scale():
    axes = torch.eye(IN, dtype=torch.float64)
    B = normal(OUT, 3)
    updates = [
        LowRank(axes[:3], B),
        LowRank(normal(3, 3, seed=1) @ axes[:3], 5 * B),  # the same spaces in another basis
        LowRank(axes[1:3], B[:, :2]),  # within the first
        LowRank(axes[3:6], torch.zeros(OUT, 3, dtype=torch.float64)),  # orthogonal; B untrained
    ]
    found = overlaps(stack(updates))
    in_A, in_B = found["overlap_A"], found["overlap_B"]
    for pair in ((0, 1), (0, 2), (2, 1)):
        assert in_A[pair].item() == pytest.approx(1) and in_B[pair].item() == pytest.approx(1)
    assert all(in_A[i, 3].item() == pytest.approx(0, abs=1e-12) for i in range(3))
    assert in_B[3].isnan().all() and in_A.diagonal().isnan().all()


def test_overlap_is_the_frobenius_formula_for_orthonormal_rows():
    first, second = (torch.linalg.qr(normal(IN, 3, seed=s)).Q.T for s in (0, 1))
    B = normal(OUT, 3)
    found = overlaps(stack([LowRank(first, B), LowRank(second, B)]))
    expected = ((first @ second.T) ** 2).sum().item() / 3
    assert found["overlap_A"][1, 0].item() == pytest.approx(expected)


def test_drift_is_relative_to_the_start():
    updates = tasks((2, 1))
    starts = stack([LowRank(u.A / 1.5, u.B) for u in updates]).A
    assert drifts(stack(updates), starts)["drift_A"].tolist() == [pytest.approx(0.5)] * 2


def test_kept_energy_is_one_until_a_moves_and_none_when_it_leaves_its_rows():
    axes, B = torch.eye(IN, dtype=torch.float64), normal(OUT, 2)
    stays = LowRank(normal(2, 2) @ axes[:2], B)  # other rows, same space
    half = LowRank(axes[[0, 5]], torch.ones(OUT, 2, dtype=torch.float64))
    leaves = LowRank(axes[5:7], B)
    untrained = LowRank(axes[:2], torch.zeros_like(B))
    starts = axes[:2].expand(4, 2, IN)
    found = kept(stack([stays, half, leaves, untrained]), starts)["kept_energy"]
    assert found[:3].tolist() == [pytest.approx(1), pytest.approx(0.5), pytest.approx(0)]
    assert found[3].isnan()


def test_diagnose_walks_modules_and_stages_and_tidy_spreads_its_rows():
    updates = {"q": stack(tasks()), "v": stack(tasks((3, 0, 1)))}
    grams = {name: torch.eye(IN).expand(3, IN, IN) for name in updates}
    starts = {name: u.A for name, u in updates.items()}
    names = ["rte", "sst2", "cola"]
    rows = [{"cell": "c", "tasks": names, **row} for row in diagnose(updates, starts, grams)]
    rows = pd.DataFrame(json.loads(json.dumps(rows, allow_nan=False)))
    found = tidy(rows).set_index(["module", "stage", "metric", "task", "other"]).value
    assert found.index.is_unique and set(tidy(rows).cell) == {"c"}
    assert found["v", "end", "response_BA", "sst2", "rte"] == 0  # sst2 does not adapt v
    assert ("v", "end", "overlap_A", "rte", "sst2") not in found.index
    assert ("v", "end", "overlap_A", "rte", "cola") in found.index
    drift = found.loc[:, "end", "drift_A"]
    assert set(drift.index.droplevel("other")) == {
        (m, t) for m in "qv" for t in names if (m, t) != ("v", "sst2")
    }
    assert (drift == 0).all()
    at_start = {metric for _, stage, metric, _, _ in found.index if stage == "start"}
    assert at_start == {"response_A", "overlap_A"}  # B is zero
    start, end = (found["q", stage, "response_A", "rte", "cola"] for stage in ("start", "end"))
    assert start == end > 0  # A did not move


def test_the_summary_tells_own_from_foreign():
    rows = pd.DataFrame(
        [
            {"init": "osrm", "module": m, "metric": metric, "stage": "end", "task": t, "other": o,
             "value": v}
            for m in "qv"
            for metric, t, o, v in [
                ("response_A", "a", "a", 4.0), ("response_A", "a", "b", 1.0),
                ("response_A", "b", "a", 3.0), ("drift_A", "a", None, 0.5),
            ]
        ]
    )  # fmt: skip
    line = summary(rows).loc["osrm"]
    assert line["response_A end own"] == 4 and line["response_A end foreign"] == 2
    assert line["drift_A end"] == 0.5
