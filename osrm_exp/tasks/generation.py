"""What a causal language model writes, and how likely it finds what it should have written."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from osrm_exp.spec import Task
from osrm_exp.tasks.prompts import UNCOUNTED, framed

if TYPE_CHECKING:
    from osrm_exp.tasks.data import TaskData


class Written(NamedTuple):
    """A model's answer to a prompt, and its loss on the first reference."""

    loss: float  # nats a token of the reference, averaged
    tokens: int  # of the reference
    text: str | None = None  # None: nothing was to be written
    ended: bool = True  # by itself, before `max_new_tokens`


def told(net: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits `[row, token, vocabulary]` and labels `[row, token]`, from the last token before the
    first response of a batch: no loss counts what stands before, and a vocabulary is wide."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    labels = batch["labels"]
    kept = labels.shape[1] + 1 - int(labels.ne(UNCOUNTED).any(0).int().argmax())
    if _can_keep(net):
        return net(**inputs, logits_to_keep=kept).logits, labels[:, -kept:]
    return net(**inputs).logits[:, -kept:], labels[:, -kept:]


def _can_keep(net: Any) -> bool:
    base = net.get_base_model() if hasattr(net, "get_base_model") else net
    return "logits_to_keep" in signature(base.forward).parameters


def loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy a response token, averaged over all tokens of the batch.

    Args:
        outputs: `[row, token, vocabulary]`.
        labels: `[row, token]`, `UNCOUNTED` where the prompt or padding stands.
    """
    return _token_losses(outputs, labels).sum() / labels[:, 1:].ne(UNCOUNTED).sum()


def row_losses(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`(loss [row], tokens [row])`: cross entropy a response token, averaged within its row."""
    tokens = labels[:, 1:].ne(UNCOUNTED).sum(1)
    return (_token_losses(outputs, labels).sum(1) / tokens).cpu(), tokens.cpu()


def _token_losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """`[row, token - 1]`, zero where no loss counts; a token is told by what stands before it."""
    counted = labels[:, 1:].ne(UNCOUNTED)
    logits, wanted = outputs[:, :-1][counted].float(), labels[:, 1:][counted]
    losses = nn.functional.cross_entropy(logits, wanted, reduction="none")
    return losses.new_zeros(counted.shape).masked_scatter(counted, losses)


def likelihood(losses: Tensor) -> float:
    """The mean over rows of a reference's likelihood a token (geometric mean), between 0 and 1."""
    return losses.double().neg().exp().mean().item()


def response_loss(losses: Tensor, tokens: Tensor) -> float:
    """The mean over all tokens of all references, in nats."""
    return ((losses.double() * tokens).sum() / tokens.sum()).item()


def watch(_: Task, losses: Tensor, tokens: Tensor) -> tuple[dict[str, float], str]:
    """What is known of an epoch without writing: the best likelihood chooses it."""
    found = {
        "likelihood": likelihood(losses), "response_loss": response_loss(losses, tokens),
    }  # fmt: skip
    return found, "likelihood"


@torch.inference_mode()
def run(data: TaskData, net: Any, split: str, size: int) -> tuple[list[Written], list[Any]]:
    """A network's answers to the prompts of a split, greedily, and the right ones."""
    frame, most = framed(data.task, data.tokenizer), data.task.max_new_tokens
    found: list[Written] = []
    for batch in data.batches(split, size):
        batch = {key: value.to(net.device) for key, value in batch.items()}
        known = zip(*(kept.tolist() for kept in row_losses(*told(net, batch))))
        if most is None:
            found += [Written(loss, tokens) for loss, tokens in known]
            continue
        answers = greedy(net, batch, {frame.end, data.tokenizer.eos_token_id}, most)
        for (loss, count), answer in zip(known, answers):
            text: Any = data.tokenizer.decode(answer.ids, skip_special_tokens=True)
            found.append(Written(loss, count, text.strip(), answer.ended))
    return found, data.right(split)


class Tokens(NamedTuple):
    """What was written, without what ended it."""

    ids: list[int]
    ended: bool


def greedy(
    net: Any, batch: Mapping[str, Tensor], stops: Collection[int | None], most: int
) -> list[Tokens]:
    """The likeliest next tokens after each prompt of a batch, up to an end or `most` of them.

    Args:
        net: a causal language model of transformers.
        batch: of `prompts.collate`; what its labels leave out is the prompt.
        stops: tokens that end an answer; the checkpoint's own are taken too.
        most: new tokens.
    """
    ids, mask = _prompts(batch)
    ends = _ends(net, stops)
    plain = GenerationConfig(
        max_new_tokens=most, do_sample=False, num_beams=1, use_cache=True, eos_token_id=ends,
        pad_token_id=ends[0],
    )  # fmt: skip
    with _configured(net, plain):
        whole = net.generate(input_ids=ids, attention_mask=mask)
    found = []
    for line in whole[:, ids.shape[1] :].tolist():
        length = next((i for i, token in enumerate(line) if token in ends), len(line))
        found.append(Tokens(line[:length], length < len(line)))
    return found


def _prompts(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Prompts `[row, token]` and their mask, padded on the left: all answers begin at one place."""
    lengths = batch["labels"].ne(UNCOUNTED).int().argmax(1)
    places = torch.arange(int(lengths.max()), device=lengths.device)
    shift = places - (lengths.max() - lengths)[:, None]  # [row, token]
    return batch["input_ids"].gather(1, shift.clamp(min=0)), (shift >= 0).long()


def _ends(net: Any, stops: Collection[int | None]) -> list[int]:
    own = net.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    return sorted({token for token in (*stops, *own) if token is not None})


@contextmanager
def _configured(net: Any, plain: GenerationConfig) -> Iterator[None]:
    """Without what a checkpoint asks for beside: sampling, a penalty, a length of its own."""
    before = net.generation_config
    net.generation_config = plain
    try:
        yield
    finally:
        net.generation_config = before
