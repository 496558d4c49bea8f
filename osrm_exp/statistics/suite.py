"""Statistics of a suite: what a merge asks of all tasks together, on the networks themselves.

Everything here is called as `(bench, /, *, options)` and belongs to one set of adapters, so nothing
is cached. What can be said of one task alone is in `osrm_exp.statistics`, and cached.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from osrm_exp.lora import LowRank, Update
from osrm_exp.placing import applied
from osrm_exp.statistics import gram

if TYPE_CHECKING:
    from osrm_exp.bench import Bench

LAYER = re.compile(r"(?:.*?\.)?\d+\.")  # up to the outermost number: T5's block.3, not its layer.1


class MergedPrefix:
    """Grams behind the part of the network that is already merged, for `merging.regmean_pp`.

    Padding is never counted. Costs a pass a task and block over `samples` training rows.
    """

    of_inputs = True  # of modules, as those of single tasks: tried before training

    def __init__(self, bench: Bench, /, *, level: str, samples: int) -> None:
        self.net, self.level = bench.net, level
        self.blocks = blocks_of(bench.net, bench.updates)
        self.experts = experts(bench)
        self.batches = [
            [_on(self.net.device, batch) for batch in data.batches("train", 16, samples)]
            for data in bench.data
        ]

    def __call__(
        self, merged: Mapping[str, Update], modules: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """`[task, in, in]`: with `merged` in place and, in `modules`, the task's own expert."""
        found = []
        for expert, batches in zip(self.experts, self.batches):
            within = {module: expert[module] for module in modules}
            with applied(self.net, {**merged, **within}) as net:
                found.append(gram(net, batches, modules, level=self.level, include_padding=False))
        return {module: torch.stack([task[module] for task in found]) for module in modules}


def blocks_of(net: nn.Module, modules: Collection[str]) -> list[list[str]]:
    """The modules that lie in one numbered layer, layer by layer in the order of the network.

    Modules outside every numbered layer are left out. An encoder comes before its decoder.
    """
    blocks: dict[str, list[str]] = {}
    for name, _ in net.named_modules():
        if name in modules and (layer := LAYER.match(name)):
            blocks.setdefault(layer[0], []).append(name)
    return list(blocks.values())


def losses(bench: Bench, /, *, samples: int, base: bool) -> Tensor:
    """Each expert's mean loss on a few labeled rows of every task, averaged over tasks: `[task]`.

    An expert meets another task with that task's head, and the loss is the one it was trained by:
    cross entropy, of a response by token, or the squared error of a regression on its own scale.
    The rows are held-out ones, where the protocol holds any out, else training rows. `base` adds
    one more entry, the base model's.
    """
    return loss_table(bench, samples, base).mean(1)


def loss_table(bench: Bench, samples: int, base: bool) -> Tensor:
    """Every candidate's loss on every task, `[candidate, task]`; the base model is the last one."""
    candidates = experts(bench) + ([{}] if base else [])
    return torch.tensor(
        [
            [_loss(bench, candidate, index, samples) for index in range(len(bench.tasks))]
            for candidate in candidates
        ],
        dtype=torch.float64,
    )


def experts(bench: Bench) -> list[dict[str, LowRank]]:
    """The stacked updates of a bench, one mapping a task."""
    alone = {module: stack.unstack() for module, stack in bench.updates.items()}
    return [{m: tasks[t] for m, tasks in alone.items()} for t in range(len(bench.tasks))]


def _loss(bench: Bench, updates: Mapping[str, Update], task: int, samples: int) -> float:
    split = "tune" if bench.data[task].tune else "train"
    batches = bench.data[task].batches(split, bench.batch_size, samples)
    kind, total, rows = bench.tasks[task].kind, 0.0, 0
    with applied(bench.net, updates, bench.heads[task]) as net, torch.inference_mode():
        for batch in batches:  # what is written has outputs of another length in every batch
            outputs, labels = kind.forward(net, _on(bench.net.device, batch))
            total += kind.loss(outputs, labels).item() * len(labels)
            rows += len(labels)
    return total / rows


def _on(device: torch.device, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.to(device) for key, value in batch.items()}
