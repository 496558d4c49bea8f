"""What a candidate is judged by, a task at a time, the lower the better; all are differentiable.

An objective says by `labeled` whether it may look at them (else it never gets any), by `features`
whether it wants what goes into a task's head, and by `takes` which tasks it can judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from osrm_exp.spec import Task


@dataclass(frozen=True)
class Features:
    """What goes into a task's last head module, of the candidate and of the task's own expert."""

    own: Tensor  # [row, ..., width]
    expert: Tensor
    read: Tensor  # [row, ...], whether the outputs depend on it: a head may read one token alone


@dataclass(frozen=True)
class Seen:
    """What an objective knows of a batch."""

    task: Task
    outputs: Tensor
    labels: Tensor | None = None
    features: Features | None = None


class Judge(Protocol):
    """An objective."""

    labeled: bool
    features: bool

    def takes(self, task: Task) -> bool: ...

    def __call__(self, seen: Seen) -> Tensor: ...


class Entropy:
    """Mean entropy of the softmax over a task's classes.

    AdaMerging, Yang et al., ICLR 2024, arXiv 2310.02575, eq. 5. A regression has one output, whose
    softmax is 1 whatever it is: it has no say, and the rows say so.

    Args:
        normalize: divides by `log C`, so that a task counts alike whatever its number of classes.
    """

    labeled = features = False

    def __init__(self, *, normalize: bool) -> None:
        self.normalize = normalize

    def takes(self, task: Task) -> bool:
        return task.outputs > 1

    def __call__(self, seen: Seen) -> Tensor:
        logp = seen.outputs.float().log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1).mean()
        classes = torch.tensor(float(logp.shape[-1]))
        return entropy / classes.log().item() if self.normalize else entropy


class Loss:
    """The loss that the task was trained by; a regression's squared error on its own scale."""

    labeled, features = True, False

    def takes(self, task: Task) -> bool:  # noqa: ARG002
        return True

    def __call__(self, seen: Seen) -> Tensor:
        labels: Any = seen.labels  # never missing: an objective that is `labeled` is given them
        return seen.task.kind.loss(seen.outputs, labels)


class Representation:
    """Mean absolute distance to the expert's features. Yang et al., ICML 2024, arXiv 2402.02705.

    Features are what goes into a task's last head module; where that reads one token alone, the
    others have no say.
    """

    labeled, features = False, True

    def takes(self, task: Task) -> bool:  # noqa: ARG002
        return True

    def __call__(self, seen: Seen) -> Tensor:
        assert seen.features is not None
        found = seen.features
        distance = nn.functional.l1_loss(found.own, found.expert, reduction="none").mean(-1)
        return (distance * found.read).sum() / found.read.sum()


class Blocks:
    """Distance of merged blocks to the experts', which `prodistill` measures itself."""

    labeled = features = False

    def takes(self, task: Task) -> bool:  # noqa: ARG002
        return True

    def __call__(self, seen: Seen) -> Tensor:  # noqa: ARG002
        raise ValueError("Blocks is no score of a whole network: it goes with prodistill alone")
