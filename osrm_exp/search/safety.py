"""Safety-aware merging: an alignment set beside the tasks, in what a candidate is judged by.

    L = a mean L_alignment + (1 - a) mean L_task

Hammoud et al., "Model merging and safety alignment: one bad model spoils the bunch", EMNLP Findings
2024, arXiv 2406.14563; code hammoudhasan/MergeAlign weighs single samples the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

from osrm_exp.spec import Objective, Task


def shares(
    objective: Objective | None, tasks: Sequence[Task], judged: Sequence[int]
) -> list[float]:
    """How much every task counts `[task]`, 0 for one that has no say; they sum to how many do.

    Args:
        objective: its `weight` is what the alignment set has of the whole; null: all count alike.
        tasks: of the suite.
        judged: places of those that the objective can judge.

    Raises:
        ValueError: an alignment set that is not in the suite, cannot be judged, or is all of it.
    """
    if objective is None or objective.weight is None:
        return [float(index in judged) for index in range(len(tasks))]
    guards, a = _alignment(objective, tasks), objective.weight
    guarding = [index for index, task in enumerate(tasks) if task.name in guards]
    working = [index for index in judged if index not in guarding]
    if silent := [tasks[index].name for index in guarding if index not in judged]:
        raise ValueError(
            f"objective.alignment={','.join(silent)}: {objective.call.name.partition(':')[2]} "
            "cannot judge it; Loss can"
        )
    if not working and a < 1:
        raise ValueError(
            f"objective.alignment={','.join(guards)} is all that can be judged: weight=1, or a "
            "suite with another task"
        )
    own = dict.fromkeys(working, (1 - a) / max(1, len(working)))
    own |= dict.fromkeys(guarding, a / len(guarding))
    counted = sum(share > 0 for share in own.values())
    return [counted * own.get(index, 0.0) for index in range(len(tasks))]


def _alignment(objective: Objective, tasks: Sequence[Task]) -> tuple[str, ...]:
    """The tasks that guard: those named, else those whose answers are refusals."""
    names = [task.name for task in tasks]
    for name in objective.alignment:
        if name not in names:
            raise ValueError(
                f"objective.alignment: {name} is no task of the suite: choose from "
                f"{', '.join(names)}"
            )
    found = objective.alignment or tuple(task.name for task in tasks if task.refusal)
    if not found:
        raise ValueError(
            f"objective.weight={objective.weight} needs an alignment set, and no task of "
            f"{', '.join(names)} has refusal=true: name one (objective.alignment=[{names[0]}])"
        )
    return found
