"""Tasks as data: rows, splits, tokens, batches. Nothing here knows a task by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from datasets import Dataset, load_dataset
from torch.utils.data import DataLoader, RandomSampler, Sampler
from transformers import PreTrainedTokenizerBase

from osrm_exp.hub import fetched
from osrm_exp.spec import Task
from osrm_exp.tasks import mini
from osrm_exp.tasks.kinds import Batch, Example, Row


@dataclass(frozen=True)
class TaskData:
    """Tokenised rows of one task: `input_ids`, `attention_mask`, `labels`.

    `tune` is the slice of train that the protocol holds out; no training step and no statistic
    sees it. `validation` is what the tables report.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    train: list[Example]
    tune: list[Example]
    validation: list[Example]

    def batches(
        self, split: str, size: int, rows: int | None = None, pad_to: int | None = None
    ) -> list[Batch]:
        """A split in batches of similar length, padded to the longest of the batch or to `pad_to`.

        `rows` takes the first so many, which is a random sample: train was permuted.
        """
        chosen = self._by_length(split, rows)
        return [self.collate(chosen[i : i + size], pad_to) for i in range(0, len(chosen), size)]

    def numbers(self, split: str) -> list[int]:
        """Which rows of the source a split's batches hold, in their order."""
        return [row["row"] for row in self._by_length(split)]

    def _by_length(self, split: str, rows: int | None = None) -> list[Example]:
        return sorted(getattr(self, split)[:rows], key=lambda row: len(row["input_ids"]))

    def collate(self, examples: Sequence[Example], pad_to: int | None = None) -> Batch:
        """Some rows as one batch, padded to the longest or to `pad_to`."""
        return self.task.kind.collate(examples, self.tokenizer, pad_to)


def read(task: Task, split: str) -> Dataset:
    """One split as `datasets` reads it: generated, from local parquet, or from the hub.

    Raises:
        ValueError: the rows cannot be had; the sentence says what was tried and what helps.
    """
    if task.path == "generated":
        return mini.generate(task.name, split, getattr(task.rows, split), seed=task.seed)
    if Path(task.path).is_dir():
        file = Path(task.path) / task.name / f"{getattr(task, split)}.parquet"
        if not file.is_file():
            raise ValueError(f"{task.name}: there is no file {file}")
        return Dataset.from_parquet(str(file))
    name = getattr(task, split)
    return fetched(
        task.path,
        lambda: load_dataset(task.path, task.name, revision=task.revision, split=name),
        f"give local copies with dataset.path=DIR (DIR/{task.name}/{name}.parquet) and "
        "model.path=DIR (a checkpoint folder)",
    )


@lru_cache(maxsize=64)
def load(task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> TaskData:
    """Rows of one task, checked, split by the protocol and tokenised.

    Train is permuted by `task.seed`, its first `holdout` share becomes `tune`.
    """
    train = checked(task, "train", read(task, "train"))
    validation = checked(task, "validation", read(task, "validation"))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(task.seed))
    train = train.select(order.tolist())
    if task.rows.train is not None:
        train = train.select(range(task.rows.train))
    held = round(task.holdout * len(train))
    if task.holdout and not 0 < held < len(train):
        raise ValueError(f"{task.name}: a holdout of {task.holdout} leaves a split of no row")

    def tokenised(rows: Dataset) -> list[Example]:
        texts = zip(*(rows[column] for column in task.text))
        labels = [task.kind.label(task, label) for label in rows["label"]]
        found = [Row(i, *row) for i, row in enumerate(zip(texts, labels))]
        return task.kind.encode(found, tokenizer, max_length)

    tune, rest = train.select(range(held)), train.select(range(held, len(train)))
    return TaskData(task, tokenizer, *(tokenised(rows) for rows in (rest, tune, validation)))


def checked(task: Task, split: str, rows: Dataset) -> Dataset:
    """The rows the task asks for.

    Raises:
        ValueError: a missing column, an empty split, fewer rows than asked for, an unseen label.
    """
    missing = [c for c in (*task.text, "label") if c not in rows.column_names]
    if missing:
        raise ValueError(
            f"{task.name}/{split} has no column {missing[0]!r}; it has: "
            f"{', '.join(rows.column_names)}"
        )
    cap, asked = getattr(task.cap, split), getattr(task.rows, split)
    if cap is not None:
        rows = rows.select(range(min(cap, len(rows))))
    if len(rows) == 0:
        raise ValueError(f"{task.name}/{split} is empty")
    if asked is not None and len(rows) < asked:
        raise ValueError(
            f"{task.name}/{split} has {len(rows)} rows, {asked} asked for: lower "
            f"dataset.rows.{split} or dataset.tasks.{task.name}.rows.{split}"
        )
    if asked is not None and split != "train":  # train is permuted before it is cut
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(task.seed))
        rows = rows.select(order[:asked].tolist())
    _check_labels(task, split, rows)
    return rows


def _check_labels(task: Task, split: str, rows: Dataset) -> None:
    for label in set(rows["label"]):
        try:
            task.kind.label(task, label)
        except ValueError as error:
            raise ValueError(f"{task.name}/{split} holds the label {label!r}: {error}") from None


class TaskDataModule(pl.LightningDataModule):
    """Batches of one task: shuffled and bucketed by length for training, in order for scoring."""

    def __init__(self, data: TaskData, *, batch_size: int, select: str, seed: int) -> None:
        super().__init__()
        self.data, self.batch_size, self.select, self.seed = data, batch_size, select, seed

    def train_dataloader(self) -> DataLoader:
        rows: Any = self.data.train  # a list is a dataset
        lengths = [len(row["input_ids"]) for row in rows]
        return DataLoader(
            rows,
            batch_size=self.batch_size,
            sampler=LengthBuckets(lengths, self.batch_size, self.seed),
            collate_fn=self.data.collate,
        )

    def val_dataloader(self) -> DataLoader:
        batches: Any = self.data.batches(self.select, 4 * self.batch_size)
        return DataLoader(batches, batch_size=None)


class LengthBuckets(Sampler[int]):
    """A random order in which neighbours have similar lengths.

    A permutation is cut into chunks of 32 batches, each sorted by length and dealt out as batches
    in random order; a new epoch draws a new order.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size = lengths, batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = list(RandomSampler(self.lengths, generator=self.generator))
        size, chunk = self.batch_size, 32 * self.batch_size
        full: list[list[int]] = []
        for start in range(0, len(order), chunk):
            bucket = sorted(order[start : start + chunk], key=self.lengths.__getitem__)
            full += [bucket[i : i + size] for i in range(0, len(bucket), size)]
        rest = [batch for batch in full if len(batch) < size]
        full = [batch for batch in full if len(batch) == size]
        for i in torch.randperm(len(full), generator=self.generator).tolist():
            yield from full[i]
        for batch in rest:
            yield from batch
