"""Post-hoc OSRM: adapters that are already trained, moved into constrained rows, then added.

Zhang & Zhou, ACL 2025, arXiv 2505.22934; `post_OSRM.py` of the released code.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from osrm_exp import lora
from osrm_exp.lora import LowRank
from osrm_exp.merging.contract import checked


def osrm_posthoc(
    updates: Mapping[str, LowRank], /, gram: Mapping[str, Tensor], *, scaling: float
) -> Mapping[str, LowRank]:
    """`scaling * sum_t delta_t A_t^T A_t`, rows of `A_t` where the other tasks have least energy.

    An `A_t` has as many rows as the adapter. What a task keeps of its delta is the share in those
    rows: most of it where training started from them, about `rank / in` where it did not.

    Args:
        updates: a stack a module, of two tasks at least.
        gram: `[task, in, in]` a module, second moments of its inputs in the base model.
        scaling: of the sum.

    Raises:
        ValueError: a single task.
    """
    return {m: _projected(m, stack, gram[m]) * scaling for m, stack in updates.items()}


def _projected(module: str, stack: LowRank, gram: Tensor) -> LowRank:
    # late: the solvers import SciPy, which no other merge needs
    from osrm_exp.inits import eigen
    from osrm_exp.inits.posthoc import project

    tasks, width = len(stack), stack.shape[1]
    if tasks < 2:
        raise ValueError("osrm_posthoc needs at least two tasks: it looks at the others' inputs")
    grams = checked("gram", module, gram, tasks, width, width).double()
    parts = []
    for number, update in enumerate(stack.unstack()):
        others = (grams.sum(0) - grams[number]) / (tasks - 1)
        A = eigen.smallest(others, update.rank)[1].mT.to(update.A)
        parts.append(project(update, A)[0])
    return lora.stack(parts).total()
