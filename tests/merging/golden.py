"""Fixtures that the released implementations produced: adapters, hyperparameters, expected deltas.

They lie in `../shared/golden` beside the checkout, or in the folder that `OSRM_EXP_GOLDEN` names;
tests that need them are skipped where there are none. Whatever differs between two sets (seeds,
shapes, ranks, tasks, hyperparameters) is read from a fixture's metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from osrm_exp.lora import LowRank, Update, stack

BESIDE = Path(__file__).parents[3] / "shared" / "golden"
GOLDEN = Path(os.environ.get("OSRM_EXP_GOLDEN", BESIDE))
FLOAT32_TOLERANCE = {"iso_cts_dense": 2e-4}  # 1e-4 for all others


@dataclass(frozen=True)
class Golden:
    """One fixture, task axis first everywhere."""

    name: str
    updates: dict[str, LowRank]  # scaling folded in as `folding` says
    hyperparameters: dict
    expected: dict[str, Tensor]  # [out, in], or [task, out, in] where the result is per task
    tensors: dict[str, dict[str, Tensor] | Tensor]  # kind -> {module: [task, ...] or [...]}, or [T]
    tolerance: float
    tasks: list[str]
    ranks: list[int]
    scaling: list[float]
    folding: str
    notes: str

    def check(self, result: Mapping[str, Update]) -> None:
        """Compare every module's delta by relative Frobenius error."""
        assert set(result) == set(self.expected)
        for module, expected in self.expected.items():
            error = distance(result[module], expected)
            assert error <= self.tolerance, f"{self.name} {module}: {error:.1e}"


def dense(update: Update | Tensor) -> Tensor:
    """The delta `[*, out, in]` of a result; of a routed one its answers to unit inputs."""
    if torch.is_tensor(update):
        return update
    if update.sharing == "routed":
        unit = torch.eye(update.shape[1], dtype=update.dtype)
        return update.added(unit, unit.new_zeros(len(unit), update.shape[0])).mT
    return update.delta


def distance(update: Update | Tensor, expected: Update | Tensor) -> float:
    """Frobenius distance of two deltas, relative to the second (absolute where that is zero)."""
    got, expected = dense(update).double(), dense(expected).double()
    assert got.shape == expected.shape
    norm = expected.norm().item()
    return (got - expected).norm().item() / (norm or 1.0)


def load(name: str, dtype: torch.dtype = torch.float64) -> Golden:
    """Fixture `name` with its inputs in `dtype`; float32 loosens the tolerance to 1e-4."""
    path = GOLDEN / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"no fixture {path}")
    with safe_open(path, "pt") as file:
        meta = file.metadata()
        raw = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tasks, modules, scaling = (json.loads(meta[k]) for k in ("tasks", "modules", "scaling"))
    tensors = {kind: _of_kind(raw, kind, tasks, modules, dtype) for kind in _kinds(raw)}
    tolerance = float(meta["tolerance"])
    if dtype == torch.float32:
        tolerance = max(tolerance, FLOAT32_TOLERANCE.get(name, 1e-4))
    folding = meta["scale_folding"]
    return Golden(
        name=name,
        updates={m: _folded(raw, tasks, m, scaling, folding).to(dtype) for m in modules},
        hyperparameters=json.loads(meta["hyperparameters"]),
        expected=_of_kind(raw, "delta", tasks, modules, torch.float64),
        tensors=tensors,
        tolerance=tolerance,
        tasks=tasks,
        ranks=json.loads(meta["ranks"]),
        scaling=scaling,
        folding=folding,
        notes=meta["notes"],
    )


def _kinds(raw: dict[str, Tensor]) -> set[str]:
    return {key.split(".")[0] for key in raw} - {"A", "B", "delta"}


def _folded(raw, tasks, module, scaling, folding) -> LowRank:
    """Scaling goes into B, half of it into A too (`sqrt`) where the reference did so."""
    updates = []
    for task, s in zip(tasks, scaling):
        A, B = raw[f"A.{task}.{module}"], raw[f"B.{task}.{module}"]
        updates.append(LowRank(A * s**0.5, B * s**0.5) if "sqrt" in folding else LowRank(A, B * s))
    return stack(updates)


def _of_kind(raw, kind, tasks, modules, dtype):
    """All tensors of a kind: one, one a module, or stacked over tasks; floating ones in `dtype`."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    if kind in raw:
        return cast(raw[kind])
    if f"{kind}.{modules[0]}" in raw:
        return {m: cast(raw[f"{kind}.{m}"]) for m in modules}
    return {m: cast(torch.stack([raw[f"{kind}.{t}.{m}"] for t in tasks])) for m in modules}
