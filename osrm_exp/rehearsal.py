"""A cell in miniature: its functions, with their values, on a tiny network, before anything is
built.

A name that is wrong is seen when a config is read; a value may be of the right type and still mean
nothing (`density=-1`, `space=foo`). So every function of a cell is run as the cell will run it, on
as many tasks, at every corner of the merge's grid: milliseconds, where training takes hours.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from osrm_exp.adapter import Adapter
from osrm_exp.inits import row_norm
from osrm_exp.lora import LowRank, Result, stack
from osrm_exp.model import adapted_modules, check_fit, heads_of, skeleton
from osrm_exp.search.coefficients import layers_of
from osrm_exp.search.dry import check, dry
from osrm_exp.spec import Cell, Merge, Need
from osrm_exp.tasks.kinds import causal, classification
from osrm_exp.tasks.metrics import metrics_of
from osrm_exp.tasks.prompts import UNCOUNTED

TOKENS, ROWS, WORDS = 8, 3, 30


@dataclass(frozen=True)
class _Rows:
    """What a bench knows of one task's data."""

    seed: int
    written: bool  # a label a token, of which the first half is a prompt
    tune: tuple = (1,)

    def batches(self, *_: Any) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(1, WORDS, (ROWS, TOKENS), generator=generator)
        labels = torch.arange(ROWS) % 2
        if self.written:
            labels = ids.masked_fill(torch.arange(TOKENS) < TOKENS // 2, UNCOUNTED)
        return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}]


class Stage:
    """The bench of a rehearsal: as many tasks as the cell has, on a tiny BERT or, where they are
    written, a tiny Llama, of so many layers."""

    batch_size = ROWS

    def __init__(self, cell: Cell, ranks: Sequence[int], layers: int) -> None:
        self.cell = cell
        self.rank, self.ranks = cell.tuning.lora.r, ranks
        self.width = 2 * max(ranks) + 2
        writes = cell.tasks[0].writes
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = self._network(writes, layers).eval()
        ends = ("q_proj", "v_proj") if writes else ("query", "value")
        self.modules = [name for name, _ in self.net.named_modules() if name.endswith(ends)]
        kind = causal if writes else classification
        self.tasks = [SimpleNamespace(kind=kind) for _ in cell.tasks]
        self.data = [_Rows(seed, writes) for seed in range(len(cell.tasks))]
        head: dict[str, nn.Module] = {} if writes else {"classifier": self.net.classifier}
        self.heads = [head for _ in cell.tasks]
        self.updates = {module: self._update(number) for number, module in enumerate(self.modules)}

    def _network(self, writes: bool, layers: int) -> PreTrainedModel:
        size: dict[str, Any] = dict(
            vocab_size=WORDS, hidden_size=self.width, num_hidden_layers=layers, eos_token_id=2,
            num_attention_heads=1, intermediate_size=4, max_position_embeddings=TOKENS,
        )  # fmt: skip
        if writes:
            return LlamaForCausalLM(LlamaConfig(**size))
        return BertForSequenceClassification(BertConfig(**size))

    def _update(self, number: int) -> LowRank:
        generator = torch.Generator().manual_seed(number)
        drawn = [torch.randn(2, rank, self.width, generator=generator) for rank in self.ranks]
        return stack([LowRank(A, B.mT.contiguous() / 10) for A, B in drawn])

    def statistic(self, need: Need) -> list[Mapping[str, Tensor]]:
        """What a function of single tasks finds, for every task."""
        return [need.call(self.net, rows.batches(), self.modules) for rows in self.data]


def rehearse(cell: Cell, given: Mapping[str, Adapter] = {}) -> None:
    """Runs every function of a cell in miniature.

    Args:
        cell: what will be run.
        given: its adapters from elsewhere, by task: they have ranks of their own.

    Raises:
        ValueError: in one sentence, which part of the config cannot work and why.
    """
    layers = _parts(cell)
    ranks = [_rank(cell, task.name, given) for task in cell.tasks]
    stage = Stage(cell, ranks, layers if cell.search.family else 1)
    for need in cell.diagnostics.values():
        with _told("diagnostics.statistics"):
            stage.statistic(need)
    _start(cell, stage)
    _merge(cell.merge, stage, cell)


def _rank(cell: Cell, task: str, given: Mapping[str, Adapter]) -> int:
    if task in given:
        return max(update.rank for update in given[task].updates.values())
    return cell.tuning.of(task).lora.r


def _parts(cell: Cell) -> int:
    """Whether the real architecture has the modules and heads that the config names, also where a
    task or the arm of the heads has settings of its own; how many of its layers are adapted."""
    for task in cell.tasks:
        metrics_of(task)
    net = skeleton(cell.model, cell.tasks[0].outputs, auto=cell.tasks[0].kind.auto)
    heads = heads_of(net, cell.model)
    arms = [cell.tuning, *([cell.heads.tuning] if cell.heads else [])]
    own = [arm.of(task.name) for arm in arms for task in cell.tasks]
    found: set[str] = set()
    for tuning in dict.fromkeys([*arms, *own]):
        adapted = adapted_modules(net, cell.model, tuning.lora.blocks, tuning.lora.r)
        if inside := [name for name in adapted if name.startswith(tuple(f"{h}." for h in heads))]:
            raise ValueError(
                f"model.heads={list(cell.model.heads)} holds {inside[0]}, which LoRA adapts: a "
                "head is trained whole, kept by its task and never merged"
            )
        found |= set(adapted)
        check_fit(net, cell.model, tuning.max_length)
    _check_heads(cell, net, heads)
    return len(layers_of(list(adapted_modules(net, cell.model, cell.tuning.lora.blocks))))


def _check_heads(cell: Cell, net: nn.Module, heads: Iterable[str]) -> None:
    """Whether all that follows the number of outputs is in a head: tasks differ in it."""
    first = cell.tasks[0]
    wider = skeleton(cell.model, first.outputs + 1, auto=first.kind.auto)
    shapes = {name: weight.shape for name, weight in wider.named_parameters()}
    own = tuple(f"{head}." for head in heads)
    for name, weight in net.named_parameters():
        if weight.shape != shapes[name] and not name.startswith(own):
            raise ValueError(
                f"model.heads={list(cell.model.heads)} leaves out {name.rpartition('.')[0]}, whose "
                f"shape follows a task's outputs: add it, or the module that holds it"
            )


def _start(cell: Cell, stage: Stage) -> None:
    statistics: dict[str, Tensor] = {}
    for keyword, need in cell.init.statistics.items():
        need.call.check(f"init.statistics.{keyword}", 3)
        with _told(f"init.statistics.{keyword}"):
            own, *others = [found[stage.modules[0]] for found in stage.statistic(need)]
            statistics[keyword] = own if need.tasks == "own" else torch.stack(others)
    with _told("init"):
        row_norm(torch.ones(1, 1), cell.init.row_norm)
    if cell.init.call:
        cell.init.call.check("init", 2, ("generator", *statistics))
        with _told(f"init={cell.names['init']}"):
            cell.init.call(stage.width, stage.rank, generator=torch.Generator(), **statistics)


def _merge(merge: Merge, stage: Stage, cell: Cell) -> None:
    merge.check()
    statistics: dict[str, Any] = {}
    for keyword, need in merge.statistics.items():
        where = f"merge.statistics.{keyword}"
        if need.of == "suite":
            need.call.check(where, 1, ("samples",))
            with _told(where):
                statistics[keyword] = need.call(stage, samples=need.samples)
        else:
            need.call.check(where, 3)
            with _told(where):
                found = stage.statistic(need)
                statistics[keyword] = {
                    module: torch.stack([one[module] for one in found]) for module in stage.modules
                }
    for settings in _corners(merge):
        with _told(
            f"merge={cell.names['merge']}" + "".join(f" {k}={v}" for k, v in settings.items())
        ):
            for _ in Result(merge.with_(**settings)(stage.updates, **statistics), cell.rank):
                pass
    if cell.search.call:
        where = "merge.search" if merge.search else "search"
        check(cell.search, where, cell.protocol.holdout)
        with _told(f"{where} of merge={cell.names['merge']}"):
            dry(cell, stage, statistics)


def _corners(merge: Merge) -> Iterator[dict[str, Any]]:
    """Every combination of the grid's first and last values; of no grid, the one of no value."""
    ends = [dict.fromkeys((values[0], values[-1])) for values in merge.grid.values()]
    yield from (dict(zip(merge.grid, point)) for point in product(*ends))


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Whatever a function raises is the config's fault here, and is told in one sentence; what it
    warns of is of these few rows, and says nothing."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except Exception as error:
        raise ValueError(
            f"{what}: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error
