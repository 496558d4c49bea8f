"""Second moments and means of what a model's modules are fed by a sample of one task's data.

Every function is `(model, batches, modules, /, *, options) -> {module: Tensor}`. `model` is in eval
mode (forward hooks that add updates may be applied), `batches` yields dicts of tensors on its
device, `modules` names linear modules within it. All modules are served by one pass.

Every result is normalised by its number of rows, so that a plain mean over tasks weighs tasks
equally however much text they have. Sums live where the model runs and end on the CPU: one
`[in, in]` float64 matrix for every *distinct* input for `gram` (134 MB at width 4096). What does
not fit is collected in several passes over a part of `modules` each. Sums are added over processes,
see `sums.reduced`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from osrm_exp.statistics.hooks import Batches, check_eval, check_reached, see_inputs, tensors
from osrm_exp.statistics.layout import with_layouts
from osrm_exp.statistics.sums import add_rows, add_squares, mirrored, reduced

Tokens = Literal["all", "prompt", "response"]


def gram(
    model: nn.Module,
    batches: Batches,
    modules: Sequence[str],
    /,
    *,
    level: str,
    include_padding: bool,
    tokens: Tokens = "all",  # as `padding` of `mean`: a config that does not say keeps its address
) -> dict[str, Tensor]:
    """Uncentred second moment `[in, in]` of each module's inputs, float64.

    A row is a real token (`level="token"`) or a sample's mean over its tokens (`level="sample"`).
    Modules that receive the very same tensor (q, k and v) share one result object.
    `include_padding` counts padded positions as the released OSRM code does. `tokens` are those of
    the prompt or of the response alone, told by labels `[sample, token]` of a causal model.

    Raises:
        ValueError: an unknown level, a model in training mode, a module that saw no input, or
            tokens that labels do not tell.
    """
    if level not in ("token", "sample"):
        raise ValueError(f"level is {level!r}: expected 'token' or 'sample'")

    rows = _real_tokens if level == "token" else _sample_means
    found = _average(model, batches, modules, rows, add_squares, include_padding, tokens)
    for total in {id(total): total for total in found.values()}.values():
        mirrored(total)
    return found


def mean(
    model: nn.Module,
    batches: Batches,
    modules: Sequence[str],
    /,
    *,
    include_padding: bool,
    padding: Literal["pad", "eos"] = "pad",  # a config that does not say keeps its address
    tokens: Tokens = "all",
) -> dict[str, Tensor]:
    """Mean `[in]` over samples of the sample's mean input, float64; shared like `gram`'s results.

    With `include_padding` it is the feature of the released OSRM code, up to its division by one
    sample too few, which no direction depends on. `padding` is the token that fills it: the
    tokenizer's own, or `eos`, which the release takes. `tokens` as for `gram`.

    Raises:
        ValueError: a model in training mode, or a module that saw no input.
    """
    if padding == "eos":
        batches = (_padded_with_eos(model, tensors(model, batch)) for batch in batches)
    return _average(model, batches, modules, _sample_means, add_rows, include_padding, tokens)


def _padded_with_eos(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with another token where it is padded."""
    eos = getattr(model.config, "eos_token_id", None)
    if eos is None:
        raise ValueError(
            "padding=eos needs a model with an end-of-sequence token: take padding=pad"
        )
    real = batch["attention_mask"].bool()
    return {**batch, "input_ids": batch["input_ids"].where(real, eos)}


@torch.no_grad()
def _average(
    model: nn.Module,
    batches: Batches,
    modules: Sequence[str],
    rows_of: Callable[[Tensor, Tensor], Tensor],
    add: Callable[[Tensor | None, Tensor], Tensor],
    include_padding: bool,
    tokens: Tokens,
) -> dict[str, Tensor]:
    """`add` up `rows_of(x, mask)` over all inputs of each module and divide by their number.

    `leader` maps a module to the first module that receives the same tensor: the sharing is found
    by identity in every batch, never by name, and must not change from batch to batch.
    """
    check_eval(model)
    leader: dict[str, str] = {}
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    chosen: Tensor | None = None  # of the tokens of a batch
    seen: dict[int, tuple[Tensor, str]] = {}  # keeps this batch's inputs alive: ids stay unique

    def see(name: str, x: Tensor, inputs: Tensor, mask: Tensor) -> None:
        _, first = seen.setdefault(id(x), (x, name))
        if leader.setdefault(name, first) != first:
            raise ValueError(
                f"{name} shared its input with {leader[name]} before and shares it with {first} "
                "now: collect these modules in separate calls"
            )
        if first == name:
            counted = torch.ones_like(mask) if include_padding else mask
            rows = rows_of(inputs, counted if chosen is None else counted & chosen)
            sums[name] = add(sums.get(name), rows)
            counts[name] = counts.get(name, 0) + len(rows)

    for batch, found in with_layouts(model, modules, batches):
        seen.clear()
        chosen = None if tokens == "all" else _chosen(batch, tokens)
        see_inputs(model, found, batch, see)
    seen.clear()
    check_reached(modules, leader)
    averages = {name: reduced(total, counts[name], model) for name, total in sums.items()}
    return {name: averages[leader[name]] for name in modules}


def _chosen(batch: Mapping[str, Tensor], tokens: Tokens) -> Tensor:
    """Which tokens are of the prompt, or of the response: `[sample, token]`."""
    if tokens not in ("prompt", "response"):
        raise ValueError(f"tokens is {tokens!r}: expected 'all', 'prompt' or 'response'")
    labels = batch.get("labels")
    if labels is None or labels.shape != batch["input_ids"].shape:
        raise ValueError(f"tokens={tokens} needs a task whose response is written: take tokens=all")
    response = labels != -100
    return response if tokens == "response" else ~response


def _real_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """Every real token, `[row, in]`, float64."""
    return x.flatten(0, 1)[mask.flatten().nonzero()[:, 0]].double()  # whole rows: x[mask] is slow


def _sample_means(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens of each sample, `[sample, in]`, float64."""
    if not mask.any(1).all():
        raise ValueError("a sample without a real token has no mean: drop empty samples")
    total = torch.where(mask[..., None], x, 0).sum(1, dtype=torch.float64)
    return total / mask.sum(1, keepdim=True)
