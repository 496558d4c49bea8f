"""What a cell is made of: frozen specifications whose unknown keys and wrong types are errors.

Nothing here imports torch, so a finished sweep is recognised in a second. A field marked
`exclude=True` says where something lies, never what it is: it takes no part in a digest.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from hydra.utils import get_method
from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

if TYPE_CHECKING:
    from osrm_exp.tasks.kinds import Kind

Fraction = Annotated[float, Field(ge=0, lt=1)]
S = TypeVar("S", bound="Spec")


class Spec(BaseModel):
    """A frozen record; its digest is the content address of whatever is built from it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the kind and all fields."""
        text = json.dumps(
            {"kind": type(self).__name__, **self.model_dump(mode="json")}, sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __hash__(self) -> int:
        return hash(self.digest)


class Rows(Spec):
    """Row counts of the two splits; null takes them all."""

    train: PositiveInt | None = None
    validation: PositiveInt | None = None


class Model(Spec):
    """A backbone: where its checkpoint lies, what a block name means, what its head is."""

    name: str = Field(exclude=True)
    path: str = Field(exclude=True)
    revision: str | None = Field(default=None, exclude=True)
    blocks: dict[str, str]  # last parts of a module's name; `*` is any one part
    heads: tuple[str, ...]
    attention: Literal["sdpa", "eager"] = "sdpa"
    weights: str  # identity of the checkpoint, see `identity`


class Task(Spec):
    """One dataset with its head; one line of YAML in a suite."""

    name: str
    path: str = Field(exclude=True)
    revision: str | None = Field(default=None, exclude=True)
    source: str  # identity of the rows, see `identity`
    text: tuple[str, ...]
    labels: Annotated[tuple[str, ...], Field(min_length=2)] | None = None  # null: a regression
    headline: str
    train: str = "train"
    validation: str = "validation"
    rows: Rows = Rows()
    cap: Rows = Rows()
    seed: int
    holdout: Fraction

    @property
    def kind(self) -> Kind:
        """What its rows, loss, predictions and metrics are; imported when a task is worked on."""
        from osrm_exp.tasks import kinds

        return kinds.regression if self.labels is None else kinds.classification

    @property
    def outputs(self) -> int:
        """Width of the head."""
        return self.kind.outputs(self)


class Lora(Spec):
    r: PositiveInt
    lora_alpha: Annotated[float, Field(gt=0)]
    lora_dropout: Fraction
    use_rslora: bool
    blocks: tuple[str, ...]


class Tuning(Spec):
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
    intermediate: str | None = Field(default=None, exclude_if=lambda task: task is None)
    per_task: dict[str, dict[str, Any]] = {}

    def of(self, task: str) -> Tuning:
        """The settings of one task: `per_task` folded in."""
        fields = {**self.model_dump(), "name": self.name, **self.per_task.get(task, {})}
        return build(Tuning, {**fields, "per_task": {}}, f"tuning.per_task.{task}")


class Init(Spec):
    """What the pipeline reads of an init; every other key is an option of its function."""

    row_norm: float | str | None
    freeze: Literal["A", "B"] | None
    peft: bool | str
    corda: dict[str, Any] | None = None
    shared: bool = False
    statistics: dict[str, dict[str, Any]] = {}

    @classmethod
    def options(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The function of an init config and its options."""
        return {key: value for key, value in config.items() if key not in cls.model_fields}


class Protocol(Spec):
    """Which split chooses, which split reports."""

    name: Literal["clean", "paper"]
    holdout: Fraction
    select: Literal["tune", "validation"]

    @model_validator(mode="after")
    def _select_from_something(self) -> Protocol:
        if self.select == "tune" and self.holdout == 0:
            raise ValueError("select=tune needs protocol.holdout > 0")
        return self


class Paths(Spec):
    """Where things lie."""

    store: str
    results: str
    logs: str


class Config(Spec):
    """The composed configuration, its groups unread; `conf/config.yaml` explains the keys."""

    experiment: str
    model: dict[str, Any]
    dataset: dict[str, Any]
    tuning: dict[str, Any]
    init: dict[str, Any]
    merge: dict[str, Any]
    search: dict[str, Any]
    protocol: dict[str, Any]
    diagnostics: dict[str, Any]
    trainer: dict[str, Any]
    logger: dict[str, Any]
    paths: dict[str, Any]
    rank: PositiveInt | None
    seed: int
    names: dict[str, str]
    overrides: list[str]


class Trainer(Spec):
    """Where fine-tuning and scoring run. It changes no number, so it is in no digest."""

    accelerator: Literal["cpu", "gpu"]


class Cell(Spec):
    """One point of a sweep."""

    experiment: str = Field(exclude=True)
    model: Model
    dataset: str
    tasks: tuple[Task, ...]
    tuning: Tuning
    init: dict[str, Any]
    merge: dict[str, Any]
    search: dict[str, Any]
    protocol: Protocol
    diagnostics: dict[str, Any] | None  # statistics; of adapters, so with merge=individual only
    rank: PositiveInt | None
    seed: int
    names: dict[str, str] = Field(exclude=True)
    overrides: tuple[str, ...] = Field(exclude=True)  # what composes this cell again
    version: int = 1

    @property
    def line(self) -> str:
        """Digest of the cell without its seed: the line of a table that it belongs to."""
        return self.model_copy(update={"seed": 0}).digest[:8]

    @property
    def setup(self) -> str:
        """Digest of all that must agree before two cells may stand in one average."""
        shared = (self.model.digest, self.tuning.digest, self.protocol.digest)
        text = json.dumps([*shared, *(t.digest for t in self.tasks)])
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def build(cls: type[S], fields: Mapping[str, Any], where: str) -> S:
    """`cls(**fields)`, with a wrong key or value named in one sentence.

    Raises:
        ValueError: an unknown or missing key, a wrong type, a value out of range.
    """
    try:
        return cls(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in (where, *first["loc"]) if part != "")
        if first["type"] == "extra_forbidden":
            known = ", ".join(cls.model_fields)
            raise ValueError(
                f"{key} is not an option; {where or 'the config'} has: {known}"
            ) from None
        got = "" if first["type"] == "missing" else f" (got {first['input']!r})"
        raise ValueError(f"{key}: {first['msg']}{got}") from None


def check_options(
    what: str, function: Callable, options: Mapping[str, Any], positional: int = 0,
    keywords: Iterable[str] = (),
) -> None:  # fmt: skip
    """Whether a function takes the options of a config, and no other is missing.

    Args:
        positional: how many arguments the caller puts first.
        keywords: which ones the caller adds by name.

    Raises:
        ValueError: an option that the function does not take, or one that it misses.
    """
    signature, given = inspect.signature(function), dict.fromkeys(keywords)
    try:
        signature.bind(*[None] * positional, **{**given, **options})
    except TypeError as error:
        known = [name for name in list(signature.parameters)[positional:] if name not in given]
        takes = f"it takes: {', '.join(known)}" if known else "it takes no option"
        raise ValueError(f"{what}: {error}; {takes}") from None


def check_target(
    what: str, config: Mapping[str, Any], positional: int = 0, keywords: Iterable[str] = ()
) -> None:
    """`check_options` of the `_target_` that a config names; where that is null, nothing is."""
    options = {k: v for k, v in config.items() if k not in ("_target_", "_partial_")}
    if config.get("_target_"):
        function = get_method(config["_target_"])
        check_options(f"{what} {function.__name__}", function, options, positional, keywords)
    elif options:
        raise ValueError(f"{what}.{next(iter(options))} is not an option of this {what}")


def cell_from(config: Mapping[str, Any]) -> Cell:
    """The cell of a composed, resolved configuration; checks everything that needs no model.

    Raises:
        ValueError: see `build`; also an unknown block, task or folder.
    """
    build(Config, config, "")
    build(Paths, config["paths"], "paths")
    build(Trainer, config["trainer"], "trainer")
    build(Init, {k: v for k, v in config["init"].items() if k in Init.model_fields}, "init")
    protocol = build(Protocol, config["protocol"], "protocol")
    tuning = build(Tuning, config["tuning"], "tuning")
    weights = identity(config["model"]["path"], config["model"].get("revision"), "model.path")
    model = build(Model, {**config["model"], "weights": weights}, "model")
    for block in tuning.lora.blocks:
        if block not in model.blocks:
            raise ValueError(
                f"tuning.lora.blocks names {block!r}; {model.name} has: {', '.join(model.blocks)}"
            )
    suite = dict(config["dataset"])
    tasks = _tasks(suite, protocol)
    for name in tuning.per_task:
        if name not in suite["tasks"]:
            raise ValueError(f"tuning.per_task names {name!r}; {suite['name']} has no such task")
    _check_intermediates([task.name for task in tasks], tuning, config["init"]["peft"])
    search = dict(config["search"])
    merge = {k: v for k, v in config["merge"].items() if k != "neutral"}
    if search.get("_target_") is None:
        merge.pop("grid", None)
    alone = config["names"]["merge"] == "individual"
    fields = dict(
        experiment=config["experiment"], model=model, dataset=suite["name"], tasks=tasks,
        tuning=tuning, init=config["init"], merge=merge, search=search, protocol=protocol,
        diagnostics=config["diagnostics"]["statistics"] if alone else None,
        rank=config["rank"], seed=config["seed"], names=config["names"],
        overrides=config["overrides"],
    )  # fmt: skip
    return build(Cell, fields, "cell")


def _check_intermediates(names: list[str], tuning: Tuning, peft: bool | str) -> None:
    """Whether every task that starts from another one's adapter can."""
    settings = {name: tuning.of(name) for name in names}
    for name, own in settings.items():
        first = own.intermediate
        if first is None:
            continue
        what = f"{name} starts from tuning.intermediate={first}"
        if first not in settings:
            raise ValueError(f"{what}; the tasks here are: {', '.join(names)}")
        if settings[first].intermediate:
            raise ValueError(f"{what}, which has one itself: set it under tuning.per_task")
        if _shape(settings[first]) != _shape(own):
            raise ValueError(f"{what}; their tuning.lora may differ in lora_dropout alone")
        if peft is not True:
            raise ValueError(f"{what}, but init.peft={peft} starts from base weights: take another")


def _shape(tuning: Tuning) -> dict[str, Any]:
    return tuning.lora.model_dump(exclude={"lora_dropout"})


def _tasks(suite: dict[str, Any], protocol: Protocol) -> tuple[Task, ...]:
    only = suite.pop("only", None) or list(suite["tasks"])
    unknown = [name for name in only if name not in suite["tasks"]]
    if unknown:
        raise ValueError(
            f"dataset.only names {unknown}; {suite['name']} has: {', '.join(suite['tasks'])}"
        )
    shared = {k: v for k, v in suite.items() if k not in ("name", "tasks", "path", "revision")}
    tasks = []
    for name in only:
        fields = {**shared, **suite["tasks"][name]}
        path = fields.setdefault("path", suite["path"])
        fields.setdefault("revision", suite.get("revision"))
        folder = f"{path}/{name}" if Path(path).is_dir() else path
        source = identity(folder, fields["revision"], "dataset.path")
        fields |= {"name": name, "source": source, "holdout": protocol.holdout}
        tasks.append(build(Task, fields, f"dataset.tasks.{name}"))
    return tuple(tasks)


def identity(path: str, revision: str | None, option: str) -> str:
    """What a checkpoint or dataset *is*: the digest of a local folder's files, else its hub id.

    Raises:
        ValueError: the path looks like a folder and there is none.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        kept = {".safetensors", ".json", ".parquet", ".model", ".txt"}
        files = sorted(p for p in folder.iterdir() if p.suffix in kept)
        return _files_digest(tuple((p, p.stat().st_size, p.stat().st_mtime_ns) for p in files))
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise ValueError(f"{option}={path} is not a folder")
    return f"{path}@{revision}" if revision else path


@lru_cache(maxsize=256)
def _files_digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    total = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as file:
            total.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return total.hexdigest()[:16]


def installed(package: str, hub: str) -> str:
    """Folder inside an installed package (`pkg/folder`), else the hub id (`owner/id`)."""
    name, _, inner = package.partition("/")
    found = find_spec(name)
    return str(Path(found.origin).parent / inner) if found and found.origin else hub


OmegaConf.register_new_resolver("installed", installed, replace=True)
