"""What is built once, ever, and kept in the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from osrm_exp.call import Call
from osrm_exp.record import Record
from osrm_exp.spec.methods import Init
from osrm_exp.spec.subject import Model, Task, Tuning


class Statistic(Record):
    """Per-module tensors from one task's rows, as the base model or its expert sees them."""

    model: Model
    task: Task
    blocks: tuple[str, ...]
    precision: str
    max_length: int
    truncation_side: str
    call: Call
    samples: int
    expert: FineTune | Given | None = None
    version: int = 1

    @property
    def label(self) -> str:
        kind = self.call.name.partition(":")[2]
        return f"{kind}-{self.task.name}" + ("-expert" if self.expert else "")

    def build(self, folder: Path, workshop: Any) -> None:
        """Collects it; see `artifacts.statistic`."""
        from osrm_exp.artifacts import statistic  # torch: not before there is something to do

        statistic.build(self, folder, workshop)


class FineTune(Record):
    """One task's LoRA adapter and head, trained from one initialisation.

    With `intermediate` it continues from that task's adapter in place of the initialisation:
    factors, and head tensors where the shapes agree.  Phang et al. 2018, arXiv 1811.01088; for
    LoRA on GLUE: Hu et al. 2022, arXiv 2106.09685, appendix D.1.
    """

    model: Model
    task: Task
    tuning: Tuning
    init: Init
    own: dict[str, Statistic] = {}
    others: dict[str, tuple[Statistic, ...]] = {}
    select: str
    seed: int
    intermediate: FineTune | None = None
    version: int = 2

    @property
    def label(self) -> str:
        return f"{self.task.name}-s{self.seed}"

    def build(self, folder: Path, workshop: Any) -> None:
        """Trains it; see `artifacts.fine_tune`."""
        from osrm_exp.artifacts import fine_tune  # torch, lightning: not before it is needed

        fine_tune.build(self, folder, workshop)


class Given(Record):
    """An adapter from elsewhere in the place of a task's fine-tuning."""

    model: Model
    task: Task
    source: str = Field(exclude=True)  # a folder, or a hub id with its revision
    content: str  # identity of what lies there, see `adapter_identity`
    version: int = 1

    @property
    def option(self) -> str:
        """Where a config names it."""
        return f"dataset.tasks.{self.task.name}.adapter"

    @property
    def label(self) -> str:
        return f"{self.task.name}-given"

    def build(self, folder: Path, workshop: Any) -> None:
        """Reads and checks it; see `artifacts.given`."""
        from osrm_exp.artifacts import given  # torch: not before there is something to do

        given.build(self, folder, workshop)


Statistic.model_rebuild()
