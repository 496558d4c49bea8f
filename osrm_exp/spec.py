"""What a cell is made of: frozen records and their digests.

Nothing here imports torch, so a finished sweep is recognised in a second. `compose` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from osrm_exp.call import Call, split
from osrm_exp.record import Record, build, digest

if TYPE_CHECKING:
    from osrm_exp.tasks.kinds import Kind

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Rows(Record):
    """Row counts of the two splits; null takes them all."""

    train: PositiveInt | None = None
    validation: PositiveInt | None = None


class Model(Record):
    """A backbone: where its checkpoint lies, what a block name means, what its head is."""

    name: str = Field(exclude=True)
    path: str = Field(exclude=True)
    revision: str | None = Field(default=None, exclude=True)
    blocks: dict[str, str]  # last parts of a module's name; `*` is any one part
    heads: tuple[str, ...]
    attention: Literal["sdpa", "eager"] = "sdpa"
    weights: str  # identity of the checkpoint, see `identity`


class Task(Record):
    """One dataset with its head; one line of YAML in a suite."""

    name: str
    path: str = Field(exclude=True)
    revision: str | None = Field(default=None, exclude=True)
    config: str | None = Field(default=None, exclude=True)  # folder or hub config; null: the name
    source: str  # identity of the rows, see `identity`
    text: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)]
    label: str = "label"
    drop: tuple[Any, ...] = ()  # labels whose rows are left out
    labels: Annotated[tuple[str, ...], Field(min_length=2)] | None = None  # null: a regression
    headline: str
    train: str = "train"
    validation: str = "validation"
    rows: Rows = Rows()
    cap: Rows = Rows()
    seed: int  # of rows and held-out slice
    follows: bool = Field(default=False, exclude=True)  # seed is the cell's, `dataset.seed: null`
    holdout: Fraction
    adapter: str | None = Field(default=None, exclude=True)  # folder or org/name@revision: `Given`

    @field_validator("text", mode="before")
    @classmethod
    def _columns(cls, text: Any) -> Any:
        return (text,) if isinstance(text, str) else text

    @property
    def unseeded(self) -> Task:
        """What the task is whatever the cell's seed, where that draws its rows."""
        return self.model_copy(update={"seed": -1}) if self.follows else self

    @property
    def kind(self) -> Kind:
        """What its rows, loss, predictions and metrics are."""
        from osrm_exp.tasks import kinds  # torch: not before a task is worked on

        return kinds.regression if self.labels is None else kinds.classification

    @property
    def outputs(self) -> int:
        """Width of the head."""
        return self.kind.outputs(self)


class Lora(Record):
    """Size and place of an adapter, as PEFT's `LoraConfig` has them."""

    r: PositiveInt
    lora_alpha: Annotated[float, Field(gt=0)]
    lora_dropout: Fraction
    use_rslora: bool
    blocks: Annotated[tuple[str, ...], Field(min_length=1)]


class Tuning(Record):
    """What is trained and how; everything here changes numbers and is part of every digest."""

    name: str = Field(exclude=True)
    lora: Lora
    lr: Annotated[float, Field(gt=0)]
    epochs: PositiveInt
    batch_size: PositiveInt
    weight_decay: Annotated[float, Field(ge=0)]
    warmup: Fraction
    clip: Annotated[float, Field(gt=0)] | None
    dropout: Fraction | None
    precision: Literal["fp32", "bf16"]
    gradient_checkpointing: bool
    max_length: PositiveInt
    truncation_side: Literal["left", "right"]
    intermediate: str | None = None
    per_task: dict[str, dict[str, Any]] = {}

    def of(self, task: str) -> Tuning:
        """The settings of one task: `per_task` folded in."""
        fields = {**self.model_dump(), "name": self.name, **self.per_task.get(task, {})}
        return build(Tuning, {**fields, "per_task": {}}, f"tuning.per_task.{task}")


class Called(Record):
    """A function of a config, and what the pipeline reads beside its options."""

    call: Call
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

    samples: PositiveInt
    of: Literal["pretrained", "expert", "suite"] = "pretrained"  # whose inputs are seen
    tasks: Literal["own", "others"] = "own"  # of an init: this task's, or every other one's


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


class Merge(Called):
    """A merge method with its settings: `conf/merge/<name>.yaml` at the door."""

    statistics: dict[str, Need] = {}
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = {}
    in_space: str | None = Field(default=None, exclude=True)  # where the function knows only one
    neutral: dict[str, Any] | None = Field(default=None, exclude=True)  # for the tests, as `laws`
    laws: tuple[str, ...] = Field(default=(), exclude=True)

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

        return upheld(self.call, updates, **statistics)


class Search(Called):
    """How a merge's free coefficients are chosen; null takes them as they stand."""

    call: Call | None


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


class Arm(Record):
    """How adapters come about: where they start and how they are trained."""

    name: str = Field(exclude=True)
    init: Init
    tuning: Tuning


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
    seed: int
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


Statistic.model_rebuild()
