"""A device that no machine lacks: tensors that are elsewhere, and refuse to meet those of the CPU.

What PyTorch refuses between a GPU and a CPU is refused here too, so that code which forgets a
device fails on a machine without one. The numbers themselves are computed on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("meta")  # the one name that needs no hardware
MIXES = ("aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put", "aten::index_put_",
         "aten::_index_put_impl_")  # fmt: skip


class Elsewhere(Tensor):
    """Holds a CPU tensor, `inner`, and lets nobody have it but `.cpu()`, `.item()`, `.tolist()`."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        self = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=ELSEWHERE,
        )  # fmt: skip
        self.inner = inner
        return self

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        return computed(function, args, kwargs or {})

    def tolist(self) -> Any:
        return self.inner.tolist()

    def new_tensor(self, data: Any) -> Elsewhere:
        return Elsewhere(torch.tensor(data, dtype=self.dtype))


class Machine(TorchDispatchMode):
    """While open, `device=ELSEWHERE` makes tensors that are there."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        return computed(function, args, kwargs or {})


def computed(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the inner tensors, where its tensors are in one place."""
    given = tree_flatten((args, kwargs))[0]
    there = [one for one in given if isinstance(one, Elsewhere)]
    here = [one for one in given if type(one) is Tensor and one.dim()]
    device = kwargs.get("device")
    name = function._schema.name
    if there and here and name not in MIXES:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    away = device == ELSEWHERE if device is not None else bool(there)
    if away and kwargs.get("generator") is not None:
        raise RuntimeError(f"{name}: expected a generator of the tensor's device")
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    found = function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if function._schema.is_mutable:
        return kwargs["out"] if "out" in kwargs else args[0]
    return tree_map(lambda one: Elsewhere(one) if isinstance(one, Tensor) and away else one, found)


def _inner(one: Any) -> Any:
    return one.inner if isinstance(one, Elsewhere) else one
