"""What is trained on what: a backbone, a task's rows, the settings of a fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator

from osrm_exp.record import Record, build

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
    tiny: dict[str, Any] = Field(default={}, exclude=True)  # its sizes in miniature, see `tiny`


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
