"""Tasks as data: rows, splits, tokens, batches. Nothing here knows a task by name."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, RandomSampler, Sampler
from transformers import PreTrainedTokenizerBase

from osrm_exp.model import load_tokenizer
from osrm_exp.spec import Model, Task
from osrm_exp.tasks.prompts import Batch, Example, Row
from osrm_exp.tasks.rows import doubts, rows_of
from osrm_exp.training.ranks import share

log = logging.getLogger("osrm_exp")


@dataclass(frozen=True)
class TaskData:
    """Tokenised rows of one task: `row`, `input_ids`, `attention_mask`, `labels`.

    `tune` is the slice of train that the protocol holds out; no training step and no statistic
    sees it. `validation` is what the tables report.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    train: list[Example]
    tune: list[Example]
    validation: list[Example]
    kept: dict = field(default_factory=dict, compare=False, repr=False)  # batches, padded once

    def batches(
        self, split: str, size: int, rows: int | None = None, pad_to: int | None = None
    ) -> list[Batch]:
        """A split in batches of similar length, padded to the longest of the batch or to `pad_to`.

        `rows` takes the first so many, which is a random sample: train was permuted.
        """
        key = (split, size, rows, pad_to)
        if key not in self.kept:
            chosen = self._by_length(split, rows)
            starts = range(0, len(chosen), size)
            self.kept[key] = [self.collate(chosen[i : i + size], pad_to) for i in starts]
        return [dict(batch) for batch in self.kept[key]]

    def numbers(self, split: str) -> list[int]:
        """Which rows of the source a split's batches hold, in their order."""
        return [row["row"] for row in self._by_length(split)]

    def right(self, split: str) -> list[Any]:
        """What the answers to a split should be, in the order of its batches."""
        return [row["answers"] for row in self._by_length(split)]

    def part(self, split: str, rows: slice) -> TaskData:
        """The same task with these rows of a split alone."""
        key = (split, rows.start, rows.stop, rows.step)
        if key not in self.kept:
            chosen = {split: getattr(self, split)[rows]}
            self.kept[key] = replace(self, **chosen, kept={})
        return self.kept[key]

    def _by_length(self, split: str, count: int | None = None) -> list[Example]:
        return sorted(getattr(self, split)[:count], key=lambda row: len(row["input_ids"]))

    def collate(self, examples: Sequence[Example], pad_to: int | None = None) -> Batch:
        """Some rows as one batch, padded to the longest or to `pad_to`."""
        return self.task.kind.collate(examples, self.tokenizer, pad_to)


@lru_cache(maxsize=64)
def load(task: Task, model: Model, max_length: int, truncation_side: str = "right") -> TaskData:
    """Rows of one task, checked, split by the protocol and tokenised as the model wants them.

    `task.seed` draws: train is permuted, and its first `holdout` share becomes `tune`. What is odd
    about the rows is said once.

    Raises:
        ValueError: an empty split, or fewer rows than asked for.
    """
    train, validation = drawn(task, "train"), drawn(task, "validation")
    held = round(task.holdout * len(train))
    if task.holdout and not 0 < held < len(train):
        raise ValueError(f"{task.name}: a holdout of {task.holdout} leaves a split of no row")
    if odd := list(doubts(task, {"train": train, "validation": validation})):
        log.warning("%s: %s", task.name, "; ".join(odd))
    tokenizer = load_tokenizer(model, truncation_side)
    splits = (task.kind.spread(train[held:]), train[:held], validation)
    encode = task.kind.encode
    learned, tune, shown = (encode(task, split, tokenizer, max_length) for split in splits)
    return TaskData(task, tokenizer, learned, tune, shown)


def drawn(task: Task, split: str) -> list[Row]:
    """As many rows of a split as the task asks for, drawn by its seed.

    Train is permuted in any case; a validation split that is wanted whole stays in order.
    """
    found, asked = rows_of(task, split), getattr(task.rows, split)
    if not found:
        raise ValueError(f"{task.name}/{split} is empty")
    if asked is not None and len(found) < asked:
        raise ValueError(
            f"{task.name}/{split} has {len(found)} rows, {asked} asked for: lower "
            f"dataset.rows.{split} or dataset.tasks.{task.name}.rows.{split}"
        )
    if asked is None and split != "train":
        return found
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(task.seed))
    return [found[i] for i in order[:asked].tolist()]


class TaskDataModule(pl.LightningDataModule):
    """Batches of one task: shuffled and bucketed by length for training, in order for scoring.

    Every rank of a training on several devices deals the same batches and takes its share of each.
    """

    def __init__(self, data: TaskData, *, batch_size: int, select: str, seed: int) -> None:
        super().__init__()
        self.data, self.batch_size, self.select = data, batch_size, select
        lengths = [len(row["input_ids"]) for row in data.train]
        self.sampler = LengthBuckets(lengths, batch_size, seed)

    def train_dataloader(self) -> DataLoader:
        rows: Any = self.data.train  # a list is a dataset
        return DataLoader(
            rows,
            batch_size=self.batch_size,
            sampler=self.sampler,
            collate_fn=lambda examples: self._share(self.data.collate(examples)),
        )

    def val_dataloader(self) -> DataLoader:
        whole = self.data.batches(self.select, 4 * self.batch_size)
        batches: Any = [self._share(batch) for batch in whole]
        return DataLoader(batches, batch_size=None)

    def _share(self, batch: Batch) -> dict[str, Any]:
        trainer: Any = self.trainer
        return share(batch, trainer.global_rank, trainer.world_size)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Where the order of rows stands, for a fine-tuning that goes on."""
        return {"order": self.sampler.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        self.sampler.generator.set_state(state_dict["order"])


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
