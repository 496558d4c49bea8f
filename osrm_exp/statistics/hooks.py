"""What flows through a model's linear modules during a forward pass.

Hooks are gone when the `with` block ends, also after an exception.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

Batches = Iterable[Mapping[str, Tensor]]


def model_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch without class labels; token labels stay, an encoder-decoder decodes from them."""
    return {k: v for k, v in batch.items() if k != "labels" or _is_text(v)}


def _is_text(labels: Tensor | None) -> bool:
    return labels is not None and labels.dim() == 2 and not labels.is_floating_point()


@contextmanager
def masked_inputs(
    model: nn.Module,
    modules: Sequence[str],
    batch: Mapping[str, Tensor],
    see: Callable[[str, Tensor, Tensor], None],
) -> Iterator[None]:
    """While open, `see(name, x [sample, token, in], mask [sample, token])` for every module input.

    A decoder position counts when its output can be read. A classifier's decoder is fed the input
    shifted right and read where the input is real, so `attention_mask` is its mask too (a shifted
    mask would count one position more, which exists only in front of padding). A text decoder is
    read where there is a label. Cross-attention's keys and values are the encoder's output,
    recognised by identity, and follow the encoder's mask.
    """
    encoded: list[Tensor] = []
    decoder: set[nn.Module] = set()
    handles = []
    if getattr(model.config, "is_encoder_decoder", False):
        decoder = set(model.get_decoder().modules())
        handles.append(
            model.get_encoder().register_forward_hook(lambda _, __, out: encoded.append(out[0]))
        )

    def hook(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        decodes = module in decoder and not any(x is e for e in encoded)
        see(name, x, _mask(name, x, batch, decodes))

    handles += [
        model.get_submodule(name).register_forward_pre_hook(partial(hook, name)) for name in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mask(name: str, x: Tensor, batch: Mapping[str, Tensor], decodes: bool) -> Tensor:
    """Which positions `[sample, token]` of the input `x` are real."""
    labels, ids = batch.get("labels"), batch["input_ids"]
    if x.dim() == 2 and len(x) == len(ids):  # behind a pooler: one row a sample
        return torch.ones(len(x), 1, dtype=torch.bool, device=x.device)
    mask = batch.get("attention_mask", torch.ones_like(ids))
    if decodes and "decoder_attention_mask" in batch:
        mask = batch["decoder_attention_mask"]
    elif decodes and _is_text(labels):
        mask = labels != -100
    if mask.shape != x.shape[:2]:
        raise ValueError(
            f"{name} has input {list(x.shape)}, which the mask {list(mask.shape)} does not fit: "
            "pass the mask of its tokens (attention_mask, decoder_attention_mask) in the batch"
        )
    return mask.bool()


@contextmanager
def traced(
    model: nn.Module, modules: Sequence[str]
) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """While open, record `(input, output)` of every call of a module, outputs with a gradient.

    The gradient of a frozen weight is read off its output: `sum_token dy x^T`.
    """
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in modules}

    def hook(name: str, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
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


def check_eval(model: nn.Module) -> None:
    """Statistics are of the network that predicts."""
    if model.training:
        raise ValueError("the model is in training mode, dropout would change it: call .eval()")


def check_reached(modules: Sequence[str], reached: Mapping) -> None:
    """Every module must have been called, or there is nothing to say of it."""
    if missing := [name for name in modules if not reached.get(name)]:
        raise ValueError(f"no batch reached {missing[0]} ({len(missing)} modules): no statistics")
