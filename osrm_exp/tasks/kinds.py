"""Kinds of tasks: all that differs between a classification, a regression and a text that is
written, one record each.

`task.kind` chooses; nothing else asks whether a task has labels. A further kind is a further
record.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from osrm_exp.spec import Task
from osrm_exp.tasks import generation, metrics, prompts, texts
from osrm_exp.tasks.metrics import Scored
from osrm_exp.tasks.prompts import Batch, Example, Row

if TYPE_CHECKING:
    from osrm_exp.tasks.data import TaskData


@torch.inference_mode()
def logits(net: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """`(logits [row, output], labels [row])` over batches, float32 on the CPU."""
    device = next(net.parameters()).device
    scores, labels = [], []
    for batch in batches:
        inputs = {k: v.to(device) for k, v in batch.items() if k != "labels"}
        scores.append(net(**inputs).logits.float().cpu())
        labels.append(batch["labels"])
    return torch.cat(scores), torch.cat(labels)


@dataclass(frozen=True)
class Kind:
    """What the rows, the network, the loss, the predictions and the metrics of a task are.

    Args:
        auto: the class of transformers that loads the network.
        task_type: PEFT's name for it.
        outputs: width of the head; 0 where there is none.
        label: a value of the label column as the loss takes it; a ValueError says what it is not.
        gather: the rows of a split as they are drawn and scored.
        spread: such rows as the ones that are trained on.
        encode: a task's rows, a tokenizer and a length; tokenised, they are examples.
        collate: examples, a tokenizer and a length to pad to (null: the longest), as one batch.
        forward: of a network and a batch, outputs `[row, …]` and labels `[row, …]` for the loss.
        loss: of these, averaged.
        keep: of a batch's outputs and labels, what the score of an epoch needs.
        watch: of all that was kept, what is logged, and the name in it that chooses the epoch.
        run: a task's data, a network, a split, a batch size; its answers, and the right ones.
        metrics: names of what is recorded; a task's headline is one of them.
        score: these metrics, of a task, its answers, the right ones, and the rows' numbers.
    """

    name: str
    auto: str
    task_type: str
    outputs: Callable[[Task], int]
    label: Callable[[Task, Any], Any]
    gather: Callable[[Task, list[Row]], list[Row]]
    spread: Callable[[Sequence[Row]], list[Row]]
    encode: Callable[[Task, Sequence[Row], PreTrainedTokenizerBase, int], list[Example]]
    collate: Callable[[Sequence[Example], PreTrainedTokenizerBase, int | None], Batch]
    forward: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    keep: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    watch: Callable[[Task, Tensor, Tensor], tuple[dict[str, float], str]]
    run: Callable[[TaskData, nn.Module, str, int], tuple[Any, Any]]
    metrics: Callable[[Task], tuple[str, ...]]
    score: Callable[[Task, Any, Any, Sequence[int]], Scored]


@lru_cache(maxsize=64)
def classes(labels: tuple[str, ...]) -> dict[str, int]:
    """What a file may hold for a class: its name or its place among the names.

    Where names are numbers themselves, as in a rating, they alone count.
    """
    names = {name: place for place, name in enumerate(labels)}
    if any(re.fullmatch(r"[+-]?\d+(\.\d*)?", name) for name in labels):
        return names
    return {str(place): place for place in names.values()} | names


def _class(task: Task, value: Any) -> int:
    labels = task.labels or ()
    known = classes(labels)
    for name in _spellings(value):
        if name in known:
            return known[name]
    places = "" if "0" not in known else f", numbered 0 to {len(labels) - 1}"
    raise ValueError(f"none of its {len(labels)} labels {', '.join(labels)}{places}")


def _spellings(value: Any) -> Iterator[str]:
    """How a value may be written as a label: a name goes before a place."""
    yield str(value)
    if isinstance(value, bool):
        yield str(value).lower()
    if isinstance(value, (bool, float)) and math.isfinite(value) and value == int(value):
        yield str(int(value))


def _value(_: Task, value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and -sys.float_info.max <= value <= sys.float_info.max:
        return float(value)
    raise ValueError("not a finite number, as a task without labels (a regression) needs")


def _response(task: Task, value: Any) -> int | tuple[str, ...]:
    if task.labels:
        return _class(task, value)
    if isinstance(value, str) and value.strip():
        return (value,)
    raise ValueError("no text that could be a response")


def _encode(
    task: Task, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Example]:
    if not rows:
        return []
    columns = [list(texts) for texts in zip(*(row.texts for row in rows))]
    added = tokenizer.num_special_tokens_to_add(pair=len(columns) > 1)
    if max_length < added + len(columns):
        raise ValueError(
            f"tuning.max_length={max_length} leaves {task.name} no token of a text beside the "
            f"{added} that the tokenizer adds: choose at least {added + len(columns)}"
        )
    tokens = tokenizer(*columns, truncation=True, max_length=max_length)
    keys = [key for key in ("input_ids", "attention_mask", "token_type_ids") if key in tokens]
    return [
        {"row": row.number, **{key: tokens[key][i] for key in keys}, "labels": row.label}
        for i, row in enumerate(rows)
    ]


def _collate(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, pad_to: int | None
) -> Batch:
    pad = DataCollatorWithPadding(
        tokenizer, padding="max_length" if pad_to else True, max_length=pad_to
    )
    return dict(pad([{k: v for k, v in row.items() if k != "row"} for row in examples]))


def _forward(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    return net(**inputs).logits, batch["labels"]


def _watch(task: Task, outputs: Tensor, labels: Tensor) -> tuple[dict[str, float], str]:
    return metrics.scores(task, outputs, labels).values, task.headline


def _headed(**own: Any) -> Kind:
    """A kind whose network has a head over the whole input."""
    shared: dict[str, Any] = dict(
        auto="AutoModelForSequenceClassification", task_type="SEQ_CLS",
        gather=lambda _, rows: rows, spread=list, encode=_encode, collate=_collate,
        forward=_forward, watch=_watch,
        keep=lambda outputs, labels: (outputs.float().cpu(), labels.cpu()),
        run=lambda data, net, split, size: logits(net, data.batches(split, size)),
    )  # fmt: skip
    return Kind(**shared, **own)


classification = _headed(
    name="classification",
    outputs=lambda task: len(task.labels or ()),
    label=_class,
    loss=lambda outputs, labels: nn.functional.cross_entropy(outputs.float(), labels),
    metrics=lambda task: metrics.of_classes(len(task.labels or ())),
    score=partial(
        metrics.of_head,
        predict=lambda outputs: outputs.argmax(dim=-1),
        measure=metrics.classification,
        constant=lambda labels: int(np.bincount(labels).argmax()),
    ),
)

regression = _headed(
    name="regression",
    outputs=lambda _: 1,
    label=_value,
    loss=lambda outputs, labels: nn.functional.mse_loss(
        outputs.float().squeeze(-1), labels.float()
    ),
    metrics=lambda _: ("pearson", "spearman", "pearson_spearman"),
    score=partial(
        metrics.of_head,
        predict=lambda outputs: outputs.squeeze(-1),
        measure=metrics.regression,
        constant=np.mean,
    ),
)

causal = Kind(
    name="causal",
    auto="AutoModelForCausalLM",
    task_type="CAUSAL_LM",
    outputs=lambda _: 0,
    label=_response,
    gather=prompts.gathered,
    spread=prompts.spread,
    encode=prompts.encode,
    collate=prompts.collate,
    forward=generation.told,
    loss=generation.loss,
    keep=generation.row_losses,
    watch=generation.watch,
    run=generation.run,
    metrics=texts.metrics_of,
    score=texts.scores,
)
