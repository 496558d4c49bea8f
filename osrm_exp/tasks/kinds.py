"""Kinds of tasks: all that differs between a classification and a regression, one record each.

`task.kind` chooses; nothing else asks whether a task has labels. A further kind is a third record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from osrm_exp.spec import Task
from osrm_exp.tasks import metrics

Example = dict[str, Any]  # `row`, `input_ids`, `attention_mask`, `labels`
Batch = dict[str, Tensor]


class Row(NamedTuple):
    """A row as it was read; `number` is its place in the source, from 0."""

    number: int
    texts: tuple[str, ...]
    label: Any


@dataclass(frozen=True)
class Kind:
    """What the rows, the network, the loss, the predictions and the metrics of a task are.

    Args:
        auto: the class of transformers that loads the network.
        task_type: PEFT's name for it.
        outputs: width of the head.
        label: a value of the label column as the loss takes it; a ValueError says what it is not.
        encode: rows, a tokenizer and a length; tokenised, they are examples.
        collate: examples, a tokenizer and a length to pad to (null: the longest), as one batch.
        loss: of outputs `[row, output]` and labels `[row]`, averaged.
        predict: outputs `[row, output]` as predictions `[row]`.
        metrics: names of what is recorded; a task's headline is one of them.
        measure: these metrics, of labels `[row]` and predictions `[row]`.
        constant: the best prediction that knows the labels `[row]` and no input; it is the floor.
    """

    name: str
    auto: str
    task_type: str
    outputs: Callable[[Task], int]
    label: Callable[[Task, Any], int | float]
    encode: Callable[[Sequence[Row], PreTrainedTokenizerBase, int], list[Example]]
    collate: Callable[[Sequence[Example], PreTrainedTokenizerBase, int | None], Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    predict: Callable[[Tensor], Tensor]
    metrics: Callable[[Task], tuple[str, ...]]
    measure: Callable[[np.ndarray, np.ndarray], dict[str, float]]
    constant: Callable[[np.ndarray], float]


@lru_cache(maxsize=64)
def classes(labels: tuple[str, ...]) -> dict[str, int]:
    """What a file may hold for a class: its name or its place among the names.

    Where names are numbers themselves, as in a rating, they alone count.
    """
    names = {name: place for place, name in enumerate(labels)}
    if any(name.lstrip("-").isdigit() for name in labels):
        return names
    return {str(place): place for place in names.values()} | names


def _class(task: Task, value: Any) -> int:
    labels = task.labels or ()
    whole = isinstance(value, (bool, float)) and math.isfinite(value) and value == int(value)
    try:
        return classes(labels)[str(int(value) if whole else value)]
    except KeyError:
        places = "" if str(0) not in classes(labels) else f", numbered 0 to {len(labels) - 1}"
        raise ValueError(f"none of its {len(labels)} labels {', '.join(labels)}{places}") from None


def _value(_: Task, value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ValueError("not a finite number, as a task without labels (a regression) needs")


def _encode(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Example]:
    if not rows:
        return []
    columns = [list(texts) for texts in zip(*(row.texts for row in rows))]
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


classification = Kind(
    name="classification",
    auto="AutoModelForSequenceClassification",
    task_type="SEQ_CLS",
    outputs=lambda task: len(task.labels or ()),
    label=_class,
    encode=_encode,
    collate=_collate,
    loss=lambda outputs, labels: nn.functional.cross_entropy(outputs.float(), labels),
    predict=lambda outputs: outputs.argmax(dim=-1),
    metrics=lambda task: (
        ("accuracy", "f1", "mcc", "accuracy_f1") if len(task.labels or ()) == 2
        else ("accuracy", "mcc")
    ),
    measure=metrics.classification,
    constant=lambda labels: int(np.bincount(labels).argmax()),
)  # fmt: skip

regression = Kind(
    name="regression",
    auto=classification.auto,
    task_type="SEQ_CLS",
    outputs=lambda _: 1,
    label=_value,
    encode=_encode,
    collate=_collate,
    loss=lambda outputs, labels: nn.functional.mse_loss(
        outputs.float().squeeze(-1), labels.float()
    ),
    predict=lambda outputs: outputs.squeeze(-1),
    metrics=lambda _: ("pearson", "spearman", "pearson_spearman"),
    measure=metrics.regression,
    constant=np.mean,
)
