"""Networks whose layers are left out, repeated and scaled, for as long as a context lasts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn


class Layer(NamedTuple):
    """A layer of a deeper or shallower network."""

    source: int  # which of the checkpoint's
    scale: float = 1.0  # of its output


class Stacked(NamedTuple):
    """Which layers a network has in the place of its own; updates are named by the new places."""

    path: str  # of the list of layers, `model.layers`
    layers: tuple[Layer, ...]


@contextmanager
def restacked(net: Any, stacked: Stacked) -> Iterator[None]:
    """A network of transformers with other layers; they share the weights of its own.

    The config says how many there are, and a layer which one it is, since caches and masks are kept
    by that.
    """
    own, config = net.get_submodule(stacked.path), net.config
    shared = {id(one): one for one in (*own.parameters(), *own.buffers(), config)}
    pairs = enumerate(stacked.layers)
    made = [_copied(own[layer.source], layer, place, shared) for place, layer in pairs]
    count, types = config.num_hidden_layers, getattr(config, "layer_types", None)
    net.set_submodule(stacked.path, nn.ModuleList(made))
    try:
        config.num_hidden_layers = len(made)
        if types:
            config.layer_types = [types[one.source] for one in stacked.layers]
        yield
    finally:
        config.num_hidden_layers = count
        if types:
            config.layer_types = types
        net.set_submodule(stacked.path, own)


def _copied(module: nn.Module, layer: Layer, place: int, shared: dict[int, Any]) -> nn.Module:
    made = copy.deepcopy(module, dict(shared))
    parts: Any = made.modules()
    for part in parts:
        if hasattr(part, "layer_idx"):
            part.layer_idx = place
    if layer.scale != 1:
        made.register_forward_hook(lambda _, __, out: _scaled(out, layer.scale))
    return made


def _scaled(out: Tensor | tuple, scale: float) -> Tensor | tuple:
    """What a layer hands on, its hidden states scaled."""
    return (out[0] * scale, *out[1:]) if isinstance(out, tuple) else out * scale
