"""Gradients of a model's log likelihood at the outputs of its linear modules."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from osrm_exp.statistics.hooks import check_reached, model_inputs, traced


def gradients(
    model: nn.Module, batch: Mapping[str, Tensor], modules: Sequence[str], mode: str
) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """For every score of a batch `{module: [(output gradient, input)]}`, a pair for each call.

    The squares of the scores' gradients add up to the Fisher: `exact` has a score for each class,
    `empirical` one with the label, `mergelm` one with all classes in it.

    Raises:
        ValueError: labels that are needed and missing, a module that the batch did not reach.
    """
    with traced(model, modules) as calls, torch.enable_grad():
        logits = model(**model_inputs(batch)).logits.float()
    if logits.dim() == 3 and mode != "empirical":
        raise ValueError(
            f"a Fisher of mode {mode!r} sums over all answers, which are too many where they are "
            "texts: take mode=empirical (merge=fisher_empirical)"
        )
    if logits.dim() not in (2, 3):
        raise ValueError(f"a Fisher needs logits [sample, label], got {list(logits.shape)}")
    check_reached(modules, calls)
    outputs = [y for name in modules for _, y in calls[name]]
    for score in _scores(logits, batch, mode):
        found = iter(torch.autograd.grad(score.sum(), outputs, retain_graph=True))
        yield {name: [(next(found), x) for x, _ in calls[name]] for name in modules}


def _scores(logits: Tensor, batch: Mapping[str, Tensor], mode: str) -> Iterator[Tensor]:
    """Scalars `[sample]` whose squared gradients add up to the Fisher; their weight is inside."""
    if "labels" not in batch and (mode == "empirical" or logits.shape[1] == 1):
        raise ValueError("this Fisher needs `labels` in every batch (empirical, or regression)")
    if logits.dim() == 3:  # log p of a response: the sum over its tokens
        told, labels = logits[:, :-1].log_softmax(-1), batch["labels"][:, 1:, None]
        yield (told.gather(2, labels.clamp(min=0)) * labels.ne(-100)).sum((1, 2))
        return
    if logits.shape[1] == 1:
        error = (logits[:, 0] - batch["labels"].float()) ** 2
        yield error / len(error) if mode == "mergelm" else error
        return
    log_p = logits.log_softmax(-1)
    if mode == "empirical":
        yield log_p.gather(1, batch["labels"][:, None])[:, 0]
        return
    weighted = log_p.detach().exp().sqrt() * log_p
    yield from [weighted.sum(-1)] if mode == "mergelm" else weighted.unbind(-1)
