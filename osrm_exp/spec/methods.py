"""What is compared: functions of a config with what they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from osrm_exp.call import Call, split
from osrm_exp.record import Record


class Called(Record):
    """A function of a config (`call`), and what the pipeline reads beside its options."""

    page: dict[str, str] = Field(default={}, exclude=True)  # what the tables in docs/ say of it

    @model_validator(mode="before")
    @classmethod
    def _read(cls, config: Any) -> Any:
        """Splits a plain config; see `call.split` for what it refuses."""
        if "call" in config:
            return config
        call, own = split(config, cls.model_fields.keys())
        kept = {key: value for key, value in own.items() if value is not None}
        return {"call": call, **kept}


class Need(Called):
    """A statistic that an init, a merge or a diagnosis asks for."""

    call: Call
    samples: PositiveInt
    of: Literal["pretrained", "expert", "suite"] = "pretrained"  # whose inputs are seen
    tasks: Literal["own", "others"] = "own"  # of an init: this task's, or every other one's
    data: str = Field(default="unlabeled train", exclude=True)  # what it sees of a task, for rows


class Init(Called):
    """How adapters start: a function for `A`, or one of PEFT's own initialisations."""

    call: Call | None  # null: PEFT's
    row_norm: float | str | None = None
    freeze: Literal["A", "B", "both"] | None = None  # both: the head alone learns
    peft: bool | str = True  # LoraConfig.init_lora_weights
    prepare: Need | None = None  # lets PEFT see the own task's rows before it starts
    shared: bool = False  # one A for all tasks
    tied: bool = False  # one A for q, k and v of a layer, which have the same inputs
    statistics: dict[str, Need] = {}


class Part(Called):
    """A function of a search beside its optimiser."""

    call: Call


class Objective(Part):
    """What a candidate is judged by, and on which rows."""

    split: Literal["train", "tune", "validation"] | None = None  # null: protocol.select
    rows: PositiveInt | None = None  # of every task; null takes the whole split
    weight: Annotated[float, Field(ge=0, le=1)] | None = None  # of the alignment set; null: as any
    alignment: tuple[str, ...] = ()  # tasks; none: those of the suite that are refusals


class Search(Called):
    """How a merge's free coefficients are chosen: family x objective x optimiser.

    A null `call` takes them as they stand. A null `family` has the merge's own settings alone; a
    null `objective` is the mean headline on the split that the protocol names.
    """

    call: Call | None
    family: Part | None = None
    first: Part | None = None  # what updates go through, task by task, before they are scaled
    objective: Objective | None = None

    @property
    def name(self) -> str:
        """Optimiser and objective, `adam entropy`; none where nothing is searched."""
        parts = [self.call] if self.call else []
        parts += [self.objective.call] if self.call and self.objective else []
        return " ".join(one.name.partition(":")[2].lower() for one in parts) or "none"


class Merge(Called):
    """A merge method with its settings: `conf/merge/<name>.yaml` at the door."""

    call: Call
    statistics: dict[str, Need] = {}
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = {}
    in_space: str | None = Field(default=None, exclude=True)  # where the function knows only one
    neutral: dict[str, Any] | None = Field(default=None, exclude=True)  # for the tests, as `laws`
    laws: tuple[str, ...] = Field(default=(), exclude=True)
    search: Search | None = Field(default=None, exclude=True)  # of its own; the cell's takes it

    @property
    def space(self) -> str:
        """The coordinates in which it combines."""
        return self.call.options.get("space") or self.in_space or "delta"

    @property
    def settings(self) -> dict[str, Any]:
        return self.call.options

    def with_(self, **settings: Any) -> Merge:
        """The same method at other settings."""
        return self.model_copy(update={"call": self.call.with_(**settings)})

    def check(self) -> None:
        """Whether the function takes the settings and every point of the grid; see `Call.check`."""
        self.call.check("merge", 1, self.statistics)
        for key, values in self.grid.items():
            for value in values:
                self.call.with_(**{key: value}).check("merge.grid", 1, self.statistics)

    def __call__(self, updates: Mapping[str, Any], **statistics: Any) -> Mapping[str, Any]:
        from osrm_exp.merging.contract import upheld  # torch: not before there is something to do

        return upheld(self.call.function)(updates, **statistics, **self.call.options)
