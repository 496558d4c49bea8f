"""Prompts and responses as tokens: what a causal language model reads and what it shall write.

A row is a prompt with all its references, so that no prompt is in two splits of one file. Trained
on is every pair of them, the loss counts the tokens of the response and the one that ends it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from osrm_exp.spec import Task

log = logging.getLogger("osrm_exp")
Example = dict[str, Any]  # `row`, `input_ids`, `attention_mask`, `labels`
Batch = dict[str, Tensor]
UNCOUNTED = -100  # the label of a token that no loss counts, as torch has it


class Row(NamedTuple):
    """A row as it was read; `number` is its place in the source, from 0."""

    number: int
    texts: tuple[str, ...]
    label: Any  # of a text that is written, its references


def gathered(task: Task, rows: list[Row]) -> list[Row]:
    """Rows of the same prompt as one, with all their responses, in the order of the first."""
    if not task.free:
        return rows
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        first = found.setdefault(row.texts, row)
        if first is not row:
            found[row.texts] = first._replace(label=(*first.label, *row.label))
    return list(found.values())


def spread(rows: Sequence[Row]) -> list[Row]:
    """Every prompt with each of its responses, all prompts with their first one first: so many rows
    from the beginning are of as many prompts as can be."""
    pairs = [
        (turn, row._replace(label=(one,)) if isinstance(row.label, tuple) else row)
        for row in rows
        for turn, one in enumerate(row.label if isinstance(row.label, tuple) else [row.label])
    ]
    return [row for _, row in sorted(pairs, key=lambda pair: pair[0])]


@dataclass(frozen=True)
class Frame:
    """How a tokenizer frames a prompt and its response; `chat`: in its chat template."""

    tokenizer: PreTrainedTokenizerBase
    chat: bool

    def prompt(self, text: str) -> list[int]:
        """The tokens after which the response begins."""
        if self.chat:
            return self._tokens(self._rendered([{"role": "user", "content": text}]))
        tokens = list(self.tokenizer(text).input_ids)
        while tokens and tokens[-1] == self.tokenizer.eos_token_id:
            tokens.pop()  # some tokenizers end every text
        return tokens

    def response(self, text: str, prompt: str) -> list[int]:
        """The tokens of a response; a space parts it from a bare prompt that ends in none."""
        parted = self.chat or prompt[-1:].isspace()
        return self._tokens(text if parted else f" {text}")

    @property
    def end(self) -> int:
        """The token that ends a response: the template's own, else the end of the sequence.

        Raises:
            ValueError: there is none, and what is written would never stop.
        """
        if self.chat and (tail := self._tail()):
            return tail[0]
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer of {self.tokenizer.name_or_path} has no end-of-sequence token, so "
                "that no answer would ever stop: name its eos_token in tokenizer_config.json"
            )
        return self.tokenizer.eos_token_id

    def _tail(self) -> list[int]:
        """What the template puts behind a response."""
        user, said = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        head, whole = self._rendered([user]) + "b", self._rendered([user, said], done=True)
        return self._tokens(whole.removeprefix(head)) if whole.startswith(head) else []

    def _rendered(self, messages: list[dict[str, str]], done: bool = False) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=not done
            )
        )

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


def framed(task: Task, tokenizer: PreTrainedTokenizerBase) -> Frame:
    """The frame of a task's prompts.

    Raises:
        ValueError: a chat template is asked for and there is none.
    """
    has = bool(tokenizer.chat_template)
    if task.chat and not has:
        raise ValueError(
            f"dataset.tasks.{task.name}.chat=true, and the tokenizer of {tokenizer.name_or_path} "
            "has no chat template: chat=null or false takes the prompt as it stands"
        )
    return Frame(tokenizer, has if task.chat is None else task.chat)


def prompt_of(task: Task, row: Row) -> str:
    """The template with the row's columns in it."""
    return str(task.prompt).format_map(dict(zip(task.text, row.texts)))


def references(task: Task, row: Row) -> tuple[str, ...]:
    """The responses that are right."""
    return row.label if task.labels is None else (task.labels[row.label],)


def encode(
    task: Task, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Example]:
    """Prompt, first response and its end as tokens; `answers` holds what is right.

    A response that is too long is cut, a prompt never.

    Raises:
        ValueError: a prompt that leaves no room for an answer, a response without one.
    """
    frame, cut, found = framed(task, tokenizer), 0, []
    room = max(1, task.max_new_tokens or 1)
    for row in rows:
        text, right = prompt_of(task, row), references(task, row)
        _check_answers(task, row, right)
        prompt = frame.prompt(text)
        if not prompt:
            raise ValueError(f"{task.name}: the prompt of row {row.number} (from 0) is empty")
        if len(prompt) + room > max_length:
            raise ValueError(
                f"{task.name}: the prompt of row {row.number} (from 0) has {len(prompt)} tokens, "
                f"which with {room} for an answer is beyond tuning.max_length={max_length}: raise "
                "it as far as the model has positions, or leave such rows out of the file"
            )
        response = [*frame.response(right[0], text), frame.end][: max_length - len(prompt)]
        cut += response[-1] != frame.end
        found.append({
            "row": row.number, "input_ids": prompt + response,
            "attention_mask": [1] * (len(prompt) + len(response)),
            "labels": [UNCOUNTED] * len(prompt) + response,
            "answers": row.label,
        })  # fmt: skip
    if cut:
        log.warning("%s: tuning.max_length=%d cuts %d of %d responses", task.name, max_length, cut,
                    len(rows))  # fmt: skip
    return found


def _check_answers(task: Task, row: Row, right: Sequence[str]) -> None:
    for one in right if task.answer else ():
        if not re.search(str(task.answer), one):
            raise ValueError(
                f"{task.name}: the response of row {row.number} (from 0) holds no "
                f"dataset.tasks.{task.name}.answer={task.answer!r}"
            )


def collate(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, pad_to: int | None
) -> Batch:
    """Examples as one batch `[row, token]`, padded on the right."""
    width = pad_to or max(len(one["input_ids"]) for one in examples)
    fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": UNCOUNTED}
    return {
        key: torch.tensor([one[key] + [pad] * (width - len(one[key])) for one in examples])
        for key, pad in fill.items()
    }
