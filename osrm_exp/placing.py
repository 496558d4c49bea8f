"""Updates and heads in a network, for as long as a context lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from osrm_exp.lora import Update


@contextmanager
def applied(
    net: nn.Module, updates: Mapping[str, Update], heads: Mapping[str, nn.Module] | None = None
) -> Iterator[nn.Module]:
    """The network with updates and heads in place; afterwards it is, bit for bit, what it was."""
    with ExitStack() as undone:
        for name, update in updates.items():
            undone.callback(place(net.get_submodule(name), update))
        for path, head in (heads or {}).items():
            undone.callback(net.set_submodule, path, net.get_submodule(path))
            net.set_submodule(path, head.to(next(net.parameters()).device))
        yield net


def place(module: nn.Module, update: Update) -> Callable[[], None]:
    """Puts an update into a linear module; returns what takes it out again.

    It is added to the module's output, in float32: no rounding of `W + delta` to bf16 occurs.
    Numbers are added to float32 weights instead, which spares a product: a parameter of its own
    takes the place of the base's, which is put aside, and the update itself need not be kept.
    """
    base: nn.Parameter = module.weight  # type: ignore[assignment]
    turned = isinstance(module, Conv1D)
    weight = update.added_to(base.mT if turned else base)
    if weight is None:
        return module.register_forward_hook(_adding(update, module)).remove
    module.weight = nn.Parameter(weight.mT if turned else weight, requires_grad=False)
    return partial(setattr, module, "weight", base)


def _adding(update: Update, module: nn.Module) -> Callable:
    placed = update.to(module.weight.device, torch.float32)
    return lambda _, args, out: placed.added(args[0], out)
