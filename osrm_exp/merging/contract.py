"""What every merge method may count on, wherever it is called from: precise and finite inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce, wraps
from typing import Any

import torch
from torch import Tensor

from osrm_exp.adapter import DTYPES
from osrm_exp.lazy import each
from osrm_exp.lora import Dense, LowRank, Update, is_finite

SYMMETRIC = 1e-4  # share of a gram's largest entry by which its triangles may differ
Method = Callable[..., Mapping[str, Update]]
Stack = LowRank | Dense  # with a task axis in front


def upheld(method: Method) -> Method:
    """The method on finite factors in float32 at least, its result in the dtype that came.

    One that is upheld already is returned as it is.

    Raises:
        ValueError: when it is called, of a factor that is not finite or no float, or of updates
            that are no stacks; when a module is taken, of a result that is not finite.
    """
    if hasattr(method, "is_upheld"):
        return method

    @wraps(method)
    def held(updates: Mapping[str, LowRank | Dense], /, *args: Any, **keywords: Any) -> Mapping:
        for module, stack in updates.items():
            _check_finite(module, stack)
        precise = {module: _promoted(stack) for module, stack in updates.items()}
        merged = method(precise, *args, **keywords)
        return each(lambda module, one: _given_back(module, one, updates[module].dtype), merged)

    held.is_upheld = True  # type: ignore[attr-defined]
    return held


def _given_back(module: str, update: Update, dtype: torch.dtype) -> Update:
    if not isinstance(update, Update):
        return update  # whoever consumes it says what it should be
    update = update if update.dtype == dtype else update.to(dtype)
    if isinstance(update, Stack) and not all(map(is_finite, update.parts)):
        raise ValueError(
            f"the merge of {module} is not finite in {dtype}: choose other settings of the method, "
            "or give it updates in float32"
        )
    return update


def _promoted(stack: LowRank | Dense) -> LowRank | Dense:
    dtype = reduce(torch.promote_types, (part.dtype for part in stack.parts), torch.float32)
    return stack.to(dtype)


def _check_finite(module: str, stack: LowRank | Dense) -> None:
    if not isinstance(stack, LowRank | Dense) or stack.parts[0].dim() != 3:
        raise ValueError(
            f"the updates of {module} are no stack of low-rank ones with a task axis in front: "
            "osrm_exp.adapter.stacked makes one of several adapters"
        )
    if other := [part.dtype for part in stack.parts if part.dtype not in DTYPES]:
        raise ValueError(
            f"the updates of {module} are {other[0]}, in which no merge is right: give float32, "
            "bfloat16, float16 or float64"
        )
    for task, parts in enumerate(zip(*stack.parts), 1):
        if not all(map(is_finite, parts)):
            raise ValueError(
                f"the update of {module} of task {task} holds NaN or infinity: train it again, or "
                "leave it out"
            )


def checked(kind: str, module: str, given: Tensor, *expected: int) -> Tensor:
    """A statistic `[task, ...]` of a module, finite and of the expected shape.

    Raises:
        ValueError: it is not, or a gram that is not symmetric.
    """
    if tuple(given.shape) != expected:
        raise ValueError(
            f"the {kind} of {module} is {list(given.shape)}, expected {list(expected)}"
        )
    for task, values in enumerate(given, 1):
        if not is_finite(values):
            raise ValueError(
                f"the {kind} of {module} of task {task} holds NaN or infinity: collect it again"
            )
        squares = values.diagonal() if "gram" in kind else values
        if (squares < 0).any():
            raise ValueError(
                f"the {kind} of {module} of task {task} holds {squares.min():.3g}, and a mean of "
                "squares is never negative: collect it again"
            )
        if "gram" in kind and (values - values.mT).abs().max() > SYMMETRIC * values.abs().max():
            raise ValueError(
                f"the {kind} of {module} of task {task} is not symmetric: give X.T @ X of inputs X"
            )
    return given
