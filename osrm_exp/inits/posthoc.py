"""Post-hoc OSRM: an adapter that is already trained, moved into the rows of a constrained `A`.

Zhang & Zhou, ACL 2025, arXiv 2505.22934; `post_OSRM.py` of the released code.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from osrm_exp.adapter import read_adapter, write_adapter
from osrm_exp.adapter_config import read_fields
from osrm_exp.hub import located
from osrm_exp.lora import LowRank


def project(update: LowRank, A: Tensor) -> tuple[LowRank, float]:
    """The part of a trained update that an `A [rank, in]` can carry.

    `B = delta pinv(A)` is the least-squares fit of `B A` to `delta`; with orthonormal rows it is
    `delta A^T`. An `A` unrelated to the training keeps about `rank / in` of the energy.

    Returns:
        The projected update, and the share of `||delta||_F^2` that it keeps (1 of a zero update).
    """
    pinv = torch.linalg.pinv(A.double())
    B = update.B.double() @ (update.A.double() @ pinv)  # [out, rank]
    before, after = _energy(update.A, update.B), _energy(A, B)
    kept = after / before if before > 0 else 1.0
    return LowRank(A.to(update.A), B.to(update.B)), kept


def project_adapter(
    source: Path | str,
    target: Path | str,
    osrm_state_dict: Mapping[str, Tensor],
    *,
    faithful: bool,
) -> dict[str, float]:
    """`project` for a PEFT folder, written to another; returns the kept energy by module.

    Args:
        source: a PEFT folder, or a hub id.
        target: where the projected one goes.
        osrm_state_dict: `A [rank, in]` by module, as `get_osrm_state_dict` gives it.
        faithful: do as the released code does. It forgets that PEFT multiplies the new factors by
            `alpha / rank` again, so that the delta comes back twice as large at the paper's 16 / 8,
            and it loses the trained heads. False keeps scale and heads.

    Raises:
        ValueError: an adapted module without an `A`.
    """
    adapter = read_adapter(source)
    if missing := sorted(adapter.updates.keys() - osrm_state_dict.keys()):
        raise ValueError(f"no A for {missing[0]} ({len(missing)} modules) of {source}")
    fields = read_fields(located(source))
    updates, kept = {}, {}
    for name, update in adapter.updates.items():
        projected, kept[name] = project(update, osrm_state_dict[name])
        updates[name] = projected * (fields.scaling(name) if faithful else 1.0)
    saved = None if faithful or fields.saved is None else list(fields.saved)
    write_adapter(
        target, updates, {} if faithful else adapter.heads, task_type=fields.task_type,
        base_model_name_or_path=fields.base, modules_to_save=saved,
    )  # fmt: skip
    return kept


def _energy(A: Tensor, B: Tensor) -> float:
    """`||B A||_F^2` from the factors."""
    A, B = A.double(), B.double()
    return ((B.mT @ B) * (A @ A.mT)).sum().item()
