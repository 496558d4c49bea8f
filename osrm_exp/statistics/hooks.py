"""What flows through a model's linear modules during a forward pass.

Hooks are gone when the `with` block ends, also after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from osrm_exp.statistics.layout import Layout, Layouts

Batches = Iterable[Mapping[str, Any]]  # of tensors, or of lists that are tensors
See = Callable[[str, Tensor, Tensor, Tensor], None]


def tensors(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """A batch as tensors on the model's device, the first axis of each being the sample.

    Raises:
        ValueError: an entry that is none, such as a list of texts or of unequal rows.
    """
    device, found = next(model.parameters()).device, {}
    for key, value in batch.items():
        try:
            found[key] = torch.as_tensor(value, device=device)
        except (TypeError, ValueError, RuntimeError):
            kind = type(value).__name__
            raise ValueError(
                f"{key!r} of a batch is a {kind} that is no tensor: pad it, or leave it out"
            ) from None
    return found


def size(batch: Mapping[str, Tensor]) -> int:
    """How many samples a batch has."""
    return len(next(iter(batch.values())))


def model_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch without class labels; token labels stay, an encoder-decoder decodes from them."""
    return {k: v for k, v in batch.items() if k != "labels" or _is_text(v)}


def _is_text(labels: Tensor | None) -> bool:
    return labels is not None and labels.dim() == 2 and not labels.is_floating_point()


class _Seen(Exception):  # noqa: N818 (it is none)
    """Every input has been seen: the rest of a forward pass is of no use."""


def see_inputs(model: nn.Module, layouts: Layouts, batch: Mapping[str, Tensor], see: See) -> None:
    """`masked_inputs` of a batch that is run no further than to the last of them."""
    left = sum(layout is not None for calls in layouts.values() for layout in calls)

    def count(*seen: Any) -> None:
        nonlocal left
        see(*seen)
        left -= 1
        if not left:
            raise _Seen

    with suppress(_Seen), masked_inputs(model, layouts, batch, count):
        model(**model_inputs(batch))


@contextmanager
def masked_inputs(
    model: nn.Module, layouts: Layouts, batch: Mapping[str, Tensor], see: See
) -> Iterator[None]:
    """While open, `see(name, x, rows [sample, token, in], mask [sample, token])` for every input.

    `x` is the very tensor that the module was given, `rows` is what its layout makes of it. Calls
    that are fed no data are left out.

    A decoder position counts when its output can be read. A classifier's decoder is fed the input
    shifted right and read where the input is real, so `attention_mask` is its mask too (a shifted
    mask would count one position more, which exists only in front of padding). A text decoder is
    read where there is a label. Cross-attention's keys and values are the encoder's output,
    recognised by identity, and follow the encoder's mask.
    """
    encoded: list[Tensor] = []
    decoder: set[nn.Module] = set()
    handles = []
    if isinstance(model, PreTrainedModel) and model.config.is_encoder_decoder:
        decoder = set(model.get_decoder().modules())
        handles.append(
            model.get_encoder().register_forward_hook(lambda _, __, out: encoded.append(out[0]))
        )
    calls = {name: iter(of) for name, of in layouts.items()}

    def hook(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x, layout = args[0], next(calls[name], ...)
        if layout is ...:
            raise ValueError(f"{name} is called more often in one batch than in another")
        if layout is not None:
            decodes = module in decoder and not any(x is e for e in encoded)
            see(name, x, *_masked(name, x, layout, batch, decodes))

    handles += [
        model.get_submodule(name).register_forward_pre_hook(partial(hook, name)) for name in layouts
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _masked(
    name: str, x: Tensor, layout: Layout, batch: Mapping[str, Tensor], decodes: bool
) -> tuple[Tensor, Tensor]:
    """The input as `[sample, token, in]` and which of its positions are real."""
    samples, rows = size(batch), x[..., 0].numel()
    if rows % samples:
        raise routed(name)
    mask = None if rows == samples else _mask(batch, decodes)  # behind a pooler: a row a sample
    if mask is None:
        mask = torch.ones(samples, rows // samples, device=x.device)
    if mask.numel() != rows:
        raise ValueError(
            f"{name} has input {list(x.shape)}, which the mask {list(mask.shape)} does not fit: "
            "pass the mask of its tokens (attention_mask, decoder_attention_mask) in the batch"
        )
    return layout(x, samples), mask.bool()


def routed(name: str) -> ValueError:
    """What to raise of a module whose inputs are no rows of samples."""
    return ValueError(
        f"{name} is fed rows that cannot be told apart by sample (routed or mixed ones): "
        "no statistic can be collected there, leave it out of the adapted blocks"
    )


def _mask(batch: Mapping[str, Tensor], decodes: bool) -> Tensor | None:
    if decodes and "decoder_attention_mask" in batch:
        return batch["decoder_attention_mask"]
    if decodes and _is_text(batch.get("labels")):
        return batch["labels"].ne(-100)
    return batch.get("attention_mask")


@contextmanager
def traced(
    model: nn.Module, modules: Sequence[str]
) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """While open, record `(input, output)` of every call of a module, outputs with a gradient.

    The gradient of a frozen weight is read off its output: `sum_token dy x^T`.
    """
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in modules}

    def hook(name: str, _: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        if not torch.is_tensor(output):
            raise ValueError(
                f"{name} gives a {type(output).__name__}, as a router does: it is no linear module"
            )
        if not output.requires_grad:
            output.requires_grad_()
        calls[name].append((args[0].detach(), output))

    handles = [
        model.get_submodule(name).register_forward_hook(partial(hook, name)) for name in modules
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def fed(model: nn.Module, modules: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """While open, record the input of every call of a module."""
    calls: dict[str, list[Tensor]] = {name: [] for name in modules}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: calls[name].append(args[0])
        )
        for name in modules
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def check_eval(model: nn.Module) -> None:
    """Statistics are of the network that predicts."""
    if model.training:
        raise ValueError("the model is in training mode, dropout would change it: call .eval()")


def check_reached(modules: Sequence[str], reached: Mapping) -> None:
    """Every module must have been called, or there is nothing to say of it."""
    if missing := [name for name in modules if not reached.get(name)]:
        raise ValueError(f"no batch reached {missing[0]} ({len(missing)} modules): no statistics")
