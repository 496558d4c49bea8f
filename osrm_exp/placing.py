"""Updates and heads in a network, for as long as a context lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from osrm_exp.lora import Update

CHEAP = 0.1  # of a module's product: what an update may cost beside it


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

    It is added to the module's output, in float32: no rounding of `W + delta` to bf16 occurs. Where
    that costs much and the weights are float32, it is added to them instead: a parameter of its own
    takes the place of the base's, which is put aside.
    """
    base: nn.Parameter = module.weight  # type: ignore[assignment]
    if base.dtype != torch.float32 or update.spared < CHEAP or _learned(base, update):
        return module.register_forward_hook(_adding(update, module)).remove
    delta = update.single.to(base).delta
    weight = base + (delta.mT if isinstance(module, Conv1D) else delta)
    module.weight = nn.Parameter(weight, requires_grad=False)
    return partial(setattr, module, "weight", base)


def _learned(base: Tensor, update: Update) -> bool:
    """Whether a gradient is wanted that a sum of both would not hand on."""
    return any(part.requires_grad for part in (base, *update.single.parts))


def _adding(update: Update, module: nn.Module) -> Callable:
    placed = update.to(module.weight.device, torch.float32)
    return lambda _, args, out: placed.added(args[0], out)
