"""What a sample of one task's data looks like to a model: gram, mean feature, Fisher.

Every function is `(model, batches, modules, /, *, options) -> {module: Tensor}`. `model` is in eval
mode (forward hooks that add updates may be applied), `batches` yields dicts of tensors on its
device, `modules` names linear modules within it. All modules are served by one pass.

Every result is normalised by its number of rows, so that a plain mean over tasks weighs tasks
equally however much text they have. Accumulators live on the CPU: one `[in, in]` float64 matrix
for every *distinct* input for `gram` (134 MB at width 4096), for every module one `[out, out]` for
`output_gram` and one `[out, in]` float32 for `fisher`. What does not fit is collected in several
passes over a part of `modules` each.

If `torch.distributed` is initialised, sums and counts are added over the processes: every process
must then make the same call with its own share of the batches.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from osrm_exp.statistics.gradients import check_reached, gradients
from osrm_exp.statistics.hooks import masked_inputs, model_inputs

Batches = Iterable[Mapping[str, Tensor]]


def gram(
    model: nn.Module,
    batches: Batches,
    modules: Sequence[str],
    /,
    *,
    level: str,
    include_padding: bool,
) -> dict[str, Tensor]:
    """Uncentred second moment `[in, in]` of each module's inputs, float64.

    A row is a real token (`level="token"`) or a sample's mean over its tokens (`level="sample"`).
    Modules that receive the very same tensor (q, k and v) share one result object.
    `include_padding` counts padded positions as the released OSRM code does.

    Raises:
        ValueError: an unknown level, a model in training mode, or a module that saw no input.
    """
    if level not in ("token", "sample"):
        raise ValueError(f"level is {level!r}: expected 'token' or 'sample'")

    def moment(x: Tensor, mask: Tensor) -> tuple[Tensor, int]:
        rows = x[mask].double() if level == "token" else _sample_means(x, mask)
        return rows.mT @ rows, len(rows)

    return _average(model, batches, modules, moment, include_padding)


def mean(
    model: nn.Module,
    batches: Batches,
    modules: Sequence[str],
    /,
    *,
    include_padding: bool,
) -> dict[str, Tensor]:
    """Mean `[in]` over samples of the sample's mean input, float64; shared like `gram`'s results.

    With `include_padding` it is the feature of the released OSRM code, up to its division by one
    sample too few, which no direction depends on.

    Raises:
        ValueError: a model in training mode, or a module that saw no input.
    """

    def moment(x: Tensor, mask: Tensor) -> tuple[Tensor, int]:
        rows = _sample_means(x, mask)
        return rows.sum(0), len(rows)

    return _average(model, batches, modules, moment, include_padding)


def fisher(
    model: nn.Module, batches: Batches, modules: Sequence[str], /, *, mode: str
) -> dict[str, Tensor]:
    """Diagonal Fisher information `[out, in]` of each module's dense weight, float32.

    Matena & Raffel, 2021, arXiv 2111.09832. With `g(x, y)` the gradient of `log p(y | x)`, summed
    over tokens before it is squared:

    - `exact`: mean over examples of `sum_y p(y | x) g(x, y)^2`, the expectation under the model;
    - `empirical`: mean over examples of `g(x, label)^2`;
    - `mergelm`: `(sum_x sum_y sqrt(p(y | x)) g(x, y))^2` a batch, summed over batches and divided
      by the number of examples, as MergeLM and EMR-Merging do. It holds cross terms and depends on
      the batch size: not a diagonal Fisher.

    A regression head (one logit) has the gradient of the squared error instead, in every mode.

    Raises:
        ValueError: an unknown mode, labels that are needed and missing, a model in training mode.
    """
    _check_mode(mode, "exact", "empirical", "mergelm")
    _check_eval(model)
    sums: dict[str, Tensor] = {}
    examples = 0
    for batch in batches:
        examples += len(batch["input_ids"])
        for found in gradients(model, batch, modules, mode):
            for name, pairs in found.items():
                square = _squared_weight_gradient(pairs, together=mode == "mergelm").cpu()
                sums[name] = sums[name].add_(square) if name in sums else square
    check_reached(modules, dict.fromkeys(sums, True))
    return {name: _reduced(sums[name], examples, model).float() for name in modules}


def output_gram(
    model: nn.Module,
    batches: Batches,
    modules: Sequence[str],
    /,
    *,
    mode: str,
    include_padding: bool,
) -> dict[str, Tensor]:
    """Uncentred second moment `[out, out]` of the gradients at each module's outputs, float64.

    The output half of a Kronecker-factored Fisher, `gram` at token level being the input half. A
    row is a real token, its gradient that of its example's `log p(y | x)`: with the label y
    (`empirical`), or in expectation over the model's own labels (`exact`). A regression head has
    the gradient of the squared error instead. MaTS, Tam et al., TMLR 2024, arXiv 2312.04339.

    Raises:
        ValueError: an unknown mode, labels that are needed and missing, a model in training mode.
    """
    _check_mode(mode, "exact", "empirical")
    _check_eval(model)
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(modules, 0)
    for batch in batches:
        masks: dict[str, list[Tensor]] = {name: [] for name in modules}

        def see(name: str, _: Tensor, mask: Tensor, masks=masks) -> None:
            masks[name].append(torch.ones_like(mask) if include_padding else mask)
            counts[name] += int(masks[name][-1].sum())

        with masked_inputs(model, modules, batch, see):
            for found in gradients(model, batch, modules, mode):
                for name, pairs in found.items():
                    rows = [g.reshape(*m.shape, -1)[m] for (g, _), m in zip(pairs, masks[name])]
                    rows = torch.cat(rows).double()
                    square = (rows.mT @ rows).cpu()
                    sums[name] = sums[name].add_(square) if name in sums else square
    check_reached(modules, dict.fromkeys(sums, True))
    return {name: _reduced(sums[name], counts[name], model) for name in modules}


def _squared_weight_gradient(pairs: list[tuple[Tensor, Tensor]], *, together: bool) -> Tensor:
    """`sum_sample (sum_token gradient x^T)^2`; `together` adds up the samples before squaring.

    Args:
        pairs: a module's output gradients `[sample, *, out]` and inputs `[sample, *, in]`, one
            pair for each time it was called.
    """
    pairs = [
        (g.flatten(1, -2), x.flatten(1, -2)) if g.dim() > 2 else (g[:, None], x[:, None])
        for g, x in pairs
    ]
    if together:
        pairs = [(g.flatten(0, 1)[None], x.flatten(0, 1)[None]) for g, x in pairs]
    samples = len(pairs[0][0])
    return sum(  # one [out, in] at a time, never [sample, out, in]
        sum(g[i].float().mT @ x[i].float() for g, x in pairs) ** 2 for i in range(samples)
    )


Moment = Callable[[Tensor, Tensor], tuple[Tensor, int]]  # (x [sample, token, in], mask) -> sum, n


@torch.no_grad()
def _average(
    model: nn.Module,
    batches: Batches,
    modules: Sequence[str],
    moment: Moment,
    include_padding: bool,
) -> dict[str, Tensor]:
    """Sum `moment` over all inputs of each module and divide by its count.

    `leader` maps a module to the first module that receives the same tensor: the sharing is found
    by identity in every batch, never by name, and must not change from batch to batch.
    """
    _check_eval(model)
    leader: dict[str, str] = {}
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    seen: dict[int, tuple[Tensor, str]] = {}  # keeps this batch's inputs alive: ids stay unique

    def see(name: str, x: Tensor, mask: Tensor) -> None:
        _, first = seen.setdefault(id(x), (x, name))
        if leader.setdefault(name, first) != first:
            raise ValueError(
                f"{name} shared its input with {leader[name]} before and shares it with {first} "
                "now: collect these modules in separate calls"
            )
        if first == name:
            total, count = moment(
                x if x.dim() == 3 else x[:, None],
                torch.ones_like(mask) if include_padding else mask,
            )
            sums[name] = sums[name].add_(total.cpu()) if name in sums else total.cpu()
            counts[name] = counts.get(name, 0) + count

    for batch in batches:
        seen.clear()
        with masked_inputs(model, modules, batch, see):
            model(**model_inputs(batch))
    seen.clear()
    check_reached(modules, leader)
    averages = {name: _reduced(total, counts[name], model) for name, total in sums.items()}
    return {name: averages[leader[name]] for name in modules}


def _sample_means(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens of each sample, `[sample, in]`, float64."""
    if not mask.any(1).all():
        raise ValueError("a sample without a real token has no mean: drop empty samples")
    total = torch.where(mask[..., None], x, 0).sum(1, dtype=torch.float64)
    return total / mask.sum(1, keepdim=True)


def _check_mode(mode: str, *known: str) -> None:
    if mode not in known:
        raise ValueError(f"mode is {mode!r}: expected {' or '.join(map(repr, known))}")


def _check_eval(model: nn.Module) -> None:
    if model.training:
        raise ValueError("the model is in training mode, dropout would change it: call .eval()")


def _reduced(total: Tensor, count: int, model: nn.Module) -> Tensor:
    """`total / count`, both added over the processes if there are several."""
    if dist.is_available() and dist.is_initialized():
        home = next(model.parameters()).device  # NCCL reduces on the accelerator only
        total, counted = total.to(home), torch.tensor(float(count), device=home)
        dist.all_reduce(total)
        dist.all_reduce(counted)
        total, count = total.cpu(), counted.item()
    return total / count
