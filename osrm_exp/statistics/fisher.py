"""Fisher information of a model's linear modules on a sample of one task's data.

Functions as in `osrm_exp.statistics.moments`. Accumulators live on the CPU: for every module one
`[out, out]` float64 matrix for `output_gram`, one `[out, in]` float32 for `fisher`.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from osrm_exp.statistics.gradients import gradients
from osrm_exp.statistics.hooks import Batches, check_eval, check_reached, masked_inputs, size
from osrm_exp.statistics.layout import Layout, Layouts, outside, with_layouts
from osrm_exp.statistics.sums import add_squares, mirrored, reduced


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
    check_eval(model)
    sums: dict[str, Tensor] = {}
    examples, together = 0, mode == "mergelm"
    for batch, layouts in with_layouts(model, modules, batches):
        examples += size(batch)
        alone = _mixed(layouts) and not together
        for part in _one_by_one(batch) if alone else [batch]:
            samples = 1 if together else size(part)
            for found in gradients(model, part, modules, mode):
                for name, pairs in found.items():
                    square = _squared_weight_gradient(pairs, layouts[name], samples).cpu()
                    sums.setdefault(name, torch.zeros_like(square)).add_(square)
    check_reached(modules, dict.fromkeys(sums, True))
    return {name: reduced(sums[name], examples, model).float() for name in modules}


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
    check_eval(model)
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(modules, 0)
    for batch, layouts in with_layouts(model, modules, batches):
        masks: dict[str, list[Tensor]] = {name: [] for name in modules}

        def see(name: str, _: Tensor, __: Tensor, mask: Tensor, masks=masks) -> None:
            masks[name].append(torch.ones_like(mask) if include_padding else mask)
            counts[name] += int(masks[name][-1].sum())

        with masked_inputs(model, layouts, batch, see):
            for found in gradients(model, batch, modules, mode):
                for name, pairs in found.items():
                    data = [(g, of) for (g, _), of in zip(pairs, layouts[name]) if of]
                    rows = [of(g, size(batch))[m] for (g, of), m in zip(data, masks[name])]
                    sums[name] = add_squares(sums.get(name), torch.cat(rows).double())
    check_reached(modules, dict.fromkeys(sums, True))
    return {name: mirrored(reduced(sums[name], counts[name], model)) for name in modules}


def _mixed(layouts: Layouts) -> bool:
    """Whether a weight also meets rows that belong to no sample: they share one gradient then."""
    return any(layout is None for calls in layouts.values() for layout in calls)


def _one_by_one(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return [{key: value[i : i + 1] for key, value in batch.items()} for i in range(size(batch))]


def _squared_weight_gradient(
    pairs: list[tuple[Tensor, Tensor]], layouts: list[Layout | None], samples: int
) -> Tensor:
    """`sum_sample (sum_token gradient x^T)^2`; one sample adds up all of them before squaring.

    Args:
        pairs: a module's output gradients `[*, out]` and inputs `[*, in]`, one pair a call.
        layouts: what orders each call's rows by sample, None where they are not data.
        samples: of the batch; 1 adds them all up.
    """
    parts = [
        ((layout or outside)(g, samples).float(), (layout or outside)(x, samples).float())
        for (g, x), layout in zip(pairs, layouts)
    ]
    squares = (  # one [out, in] at a time, never [sample, out, in]
        reduce(torch.add, (g[i].mT @ x[i] for g, x in parts)) ** 2 for i in range(samples)
    )
    return reduce(torch.add, squares)


def _check_mode(mode: str, *known: str) -> None:
    if mode not in known:
        raise ValueError(f"mode is {mode!r}: expected {' or '.join(map(repr, known))}")
