"""What is trained on what: a backbone, a task's rows, the settings of a fine-tuning."""

from __future__ import annotations

import re
from collections import Counter
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from osrm_exp.record import Record, build

if TYPE_CHECKING:
    from osrm_exp.tasks.kinds import Kind

Fraction = Annotated[float, Field(ge=0, lt=1)]
COLUMN = re.compile(r"[^\W\d][\w -]*")  # in a template's braces
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every generator takes, NumPy's too


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
    """One dataset with its head; one line of YAML in a suite.

    With a `prompt` its answer is written by a causal language model, which has no head: `label` is
    then the column of responses or, with `labels`, of the word that is the response.
    """

    name: str
    path: str = Field(exclude=True)
    revision: str | None = Field(default=None, exclude=True)
    config: str | None = Field(default=None, exclude=True)  # folder or hub config; null: the name
    source: str  # identity of the rows, see `identity`
    text: Annotated[tuple[str, ...], Field(min_length=1)]  # of a prompt, the columns it names
    label: str = "label"
    drop: tuple[Any, ...] = ()  # labels whose rows are left out
    labels: Annotated[tuple[str, ...], Field(min_length=2)] | None = None  # null: a regression
    prompt: str | None = None  # a template of columns, "Is it good? {sentence}"
    chat: bool | None = None  # in the tokenizer's chat template; null: where it has one
    max_new_tokens: PositiveInt | None = None  # of an answer; null: none is written, see `kinds`
    answer: str | None = None  # a pattern whose first group is what must match exactly
    refusal: bool = False  # labels are an answer and a refusal, told apart as refusals are
    headline: str
    train: str = "train"
    validation: str = "validation"
    rows: Rows = Rows()
    cap: Rows = Rows()
    seed: Seed  # of rows and held-out slice
    follows: bool = Field(default=False, exclude=True)  # seed is the cell's, `dataset.seed: null`
    holdout: Fraction
    adapter: str | None = Field(default=None, exclude=True)  # folder or org/name@revision: `Given`

    @model_validator(mode="before")
    @classmethod
    def _named_by_the_prompt(cls, fields: Any) -> Any:
        if not (isinstance(fields, dict) and isinstance(fields.get("prompt"), str)):
            return fields
        if fields.get("text") is not None:
            raise ValueError(".text is named by the prompt of a task that has one: leave it out")
        return {**fields, "text": columns_of(fields["prompt"])}

    @field_validator("text", mode="before")
    @classmethod
    def _columns(cls, text: Any) -> Any:
        return (text,) if isinstance(text, str) else text

    @field_validator("labels")
    @classmethod
    def _named_once(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if twice := [one for one, count in Counter(labels).items() if count > 1]:
            raise ValueError(f"it names {twice[0]!r} twice")
        return labels

    @model_validator(mode="after")
    def _fits_together(self) -> Task:
        """Whether the settings of one kind are not those of another."""
        if not self.writes:
            if len(self.text) > 2:
                raise ValueError(f".text names {len(self.text)} columns: one text, or a pair")
            own = ("chat", "max_new_tokens", "answer", "refusal")
            if set_ := [key for key in own if getattr(self, key) not in (None, False)]:
                raise ValueError(f".{set_[0]} is of a task that has a prompt")
        if self.refusal and len(self.labels or ()) != 2:
            raise ValueError(".refusal needs two labels: an answer, a refusal")
        if self.answer is not None:
            self._check_answer(self.answer)
        return self

    def _check_answer(self, pattern: str) -> None:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f".answer={pattern!r} is no pattern: {error}") from None
        if groups != 1 or self.labels:
            raise ValueError(
                f".answer={pattern!r} has one group, which is the answer, and no labels beside it"
            )

    @property
    def writes(self) -> bool:
        """Whether a causal language model writes its answer, in place of a head."""
        return self.prompt is not None

    @property
    def free(self) -> bool:
        """Whether what is written is a text, and not the word of a label."""
        return self.writes and self.labels is None

    @property
    def unseeded(self) -> Task:
        """What the task is whatever the cell's seed, where that draws its rows."""
        return self.model_copy(update={"seed": -1}) if self.follows else self

    @property
    def kind(self) -> Kind:
        """What its rows, loss, predictions and metrics are."""
        from osrm_exp.tasks import kinds  # torch: not before a task is worked on

        if self.writes:
            return kinds.causal
        return kinds.regression if self.labels is None else kinds.classification

    @property
    def outputs(self) -> int:
        """Width of the head; 0 where there is none."""
        return self.kind.outputs(self)


def columns_of(prompt: str) -> tuple[str, ...]:
    """The columns that a template names, each once.

    Raises:
        ValueError: none at all, or a brace that holds more than a name.
    """
    try:
        fields = [part for part in Formatter().parse(prompt) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f".prompt={prompt!r} is no template: {error}") from None
    names = tuple(dict.fromkeys(str(name) for _, name, *_ in fields))
    odd = any(spec or conversion for _, _, spec, conversion in fields)
    if not names or odd or not all(map(COLUMN.fullmatch, names)):
        raise ValueError(
            f".prompt={prompt!r} is no template: it names the columns of its text in braces, "
            "{column}, and doubles a brace that is none"
        )
    return names


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
