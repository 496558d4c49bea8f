"""What a search takes from a pass: the features before a head, a gradient in two pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def watched(
    net: nn.Module, heads: Mapping[str, nn.Module], leaf: bool = False
) -> Iterator[list[Tensor]]:
    """What goes into the last head module, a tensor a pass; `leaf` cuts it from what is before."""
    seen: list[Tensor] = []

    def see(_: nn.Module, args: tuple) -> tuple:
        given = args[0].detach().requires_grad_() if leaf else args[0]
        seen.append(given)
        return (given, *args[1:])

    module = net.get_submodule(list(heads)[-1])
    inner = getattr(module, "head", module)  # behind a surgery, what it hands on
    hook = inner.register_forward_pre_hook(see)
    try:
        yield seen
    finally:
        hook.remove()


def read_by_head(
    net: Any, heads: Mapping[str, nn.Module], batch: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Features `[row, ..., width]` before the last head module, and whether it reads them, 0 or 1
    `[row, ...]`."""
    inputs = {key: value.to(net.device) for key, value in batch.items() if key != "labels"}
    with watched(net, heads, leaf=True) as seen:
        outputs = net(**inputs).logits
    (features,) = seen
    (reads,) = torch.autograd.grad(outputs.float().square().sum(), features)
    return features.detach(), reads.ne(0).any(-1).to(features)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor of an update, of modules, or of a container of them."""
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, nn.Module):
        for module in value.modules():
            yield from tensors_in({**vars(module), "_modules": None})
    elif isinstance(value, (list, tuple, Mapping)):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(one)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))


def cut(update: Any, cuts: list[tuple[Tensor, Tensor]]) -> Any:
    """An update with leaves in the place of what was computed; `cuts` gets both."""
    leaves: dict[str, Any] = {}
    for field in fields(update):
        value = getattr(update, field.name)
        if torch.is_tensor(value) and value.requires_grad and not value.is_leaf:
            leaves[field.name] = value.detach().requires_grad_()
            cuts.append((value, leaves[field.name]))
        elif is_dataclass(value):
            leaves[field.name] = cut(value, cuts)
    return replace(update, **leaves) if leaves else update
