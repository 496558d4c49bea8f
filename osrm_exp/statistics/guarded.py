"""LM-Cocktail's losses with an alignment set beside the tasks.

Hammoud et al., EMNLP Findings 2024, arXiv 2406.14563; code hammoudhasan/MergeAlign.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from osrm_exp.call import Call
from osrm_exp.search.safety import shares
from osrm_exp.spec import Objective
from osrm_exp.statistics.suite import loss_table

if TYPE_CHECKING:
    from osrm_exp.bench import Bench


def guarded_losses(
    bench: Bench, /, *, samples: int, base: bool, weight: Annotated[float, Field(ge=0, le=1)],
    alignment: list[str],
) -> Tensor:  # fmt: skip
    """`suite.losses`, of which the alignment set has a share: `[task]`.

    Args:
        bench: the networks and the rows.
        samples: rows of a task.
        base: one more entry, the base model's.
        weight: of the alignment set; the tasks share the rest alike.
        alignment: tasks that guard; none: those of the suite that are refusals.

    Raises:
        ValueError: see `search.safety.shares`.
    """
    tasks, judge = bench.cell.tasks, Call(target="osrm_exp.search.Loss")
    objective = Objective(call=judge, weight=weight, alignment=tuple(alignment))
    share = torch.tensor(shares(objective, tasks, range(len(tasks))), dtype=torch.float64)
    return loss_table(bench, samples, base) @ share / share.sum()
