"""One point of a sweep, with its place in a table."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from osrm_exp.record import Record, digest
from osrm_exp.spec.methods import Init, Merge, Need, Search
from osrm_exp.spec.stages import Given
from osrm_exp.spec.subject import Fraction, Model, Seed, Task, Tuning


class Arm(Record):
    """How adapters come about: where they start and how they are trained."""

    name: str = Field(exclude=True)
    init: Init
    tuning: Tuning


class Protocol(Record):
    """Which split chooses, which split reports."""

    name: Literal["clean", "paper"]
    holdout: Fraction
    select: Literal["tune", "validation"]

    @model_validator(mode="after")
    def _select_from_something(self) -> Protocol:
        if self.select == "tune" and self.holdout == 0:
            raise ValueError("select=tune needs protocol.holdout > 0")
        return self


class Cell(Record):
    """One point of a sweep."""

    experiment: str = Field(exclude=True)
    model: Model
    dataset: str = Field(exclude=True)
    tasks: tuple[Task, ...]
    tuning: Tuning
    common: str = Field(exclude=True)  # digest of the tuning before an init's own settings
    init: Init
    heads: Arm | None = None  # whose heads the merged deltas meet; null: their own
    merge: Merge
    search: Search
    protocol: Protocol
    diagnostics: dict[str, Need] = Field(default={}, exclude=True)
    rank: PositiveInt | None = None
    seed: Seed
    given: dict[str, Given] = {}  # by task
    names: dict[str, str] = Field(exclude=True)
    overrides: tuple[str, ...] = Field(exclude=True)  # what composes this cell again
    version: int = 1

    @property
    def line(self) -> str:
        """Digest of the cell without its seed: the line of a table that it belongs to."""
        tasks = tuple(task.unseeded for task in self.tasks)
        return self.model_copy(update={"seed": 0, "tasks": tasks}).digest[:8]

    @property
    def setup(self) -> str:
        """Digest of all that must agree before two cells may stand in one average."""
        shared = (self.model, self.protocol, *(task.unseeded for task in self.tasks))
        return digest([self.common, *(one.digest for one in shared)])[:8]

    @property
    def arm(self) -> str:
        """The file of the init and what was overridden in it: no two arms look alike. Of adapters
        from elsewhere, in its place, what tells one set of them from another."""
        own = list(dict.fromkeys([self.names["init"], *self._overridden("init")]))
        if not self.given:
            return " ".join(own)
        what = digest({task: one.content for task, one in self.given.items()})[:6]
        every = len(self.given) == len(self.tasks)
        return " ".join([*([] if every else own), f"given:{what}"])

    @property
    def schedule(self) -> str:
        """The tuning and what was overridden in it; wherever it was set, also what gives a task's
        column another meaning."""
        first = {task.name: self.tuning.of(task.name).intermediate for task in self.tasks}
        parts = [f"per_task.{task}.intermediate={of}" for task, of in first.items() if of]
        changed = self._overridden("tuning")
        return " ".join(dict.fromkeys([self.tuning.name, *changed, *parts]))

    def _overridden(self, group: str) -> list[str]:
        typed = (one.lstrip("+") for one in self.overrides)
        return [one.partition(".")[2] for one in typed if one.startswith(f"{group}.")]
