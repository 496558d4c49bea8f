"""A function by its name with its options: what a config's `_target_` becomes at the door."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Collection, Iterable, Mapping
from math import isfinite
from typing import Any

from pydantic import PositiveInt, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from osrm_exp.record import Record, meaning


class Call(Record):
    """A function, named where it is configured, and the options that are its own.

    Its address is a stable name (package and function, never the module that the function lies in),
    the options, and a `version` that a config raises when the function's numbers change.
    """

    target: str
    options: dict[str, Any] = {}
    version: PositiveInt = 1

    @property
    def name(self) -> str:
        package, _, path = self.target.partition(".")
        return f"{package}:{path.rpartition('.')[2]}"

    def address(self) -> dict[str, Any]:
        found = super().address()
        return {**found, "target": self.name, "options": meaning(self.options)}

    @property
    def function(self) -> Callable[..., Any]:
        """The function itself; imports the module that it lies in."""
        module, _, name = self.target.rpartition(".")
        return pkgutil.resolve_name(f"{module}:{name}")  # not a module that bears the name too

    def with_(self, **options: Any) -> Call:
        """The same function at other settings."""
        return self.model_copy(update={"options": {**self.options, **options}})

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self.function(*args, **keywords, **self.options)

    def check(self, where: str, positional: int = 0, keywords: Iterable[str] = ()) -> None:
        """Whether the function takes these options, no other is missing, and their types are right.

        Args:
            where: the part of a config that it stands in, for the error.
            positional: how many arguments the caller puts first.
            keywords: which ones the caller adds by name.

        Raises:
            ValueError: an unknown function, an option that it does not take or that it misses, a
                value of another type than the function declares.
        """
        try:
            signature, given = inspect.signature(self.function), dict.fromkeys(keywords)
        except Exception as error:  # whatever importing a module of somebody's raises
            raise ValueError(f"{where}: {' '.join(str(error).split())}") from None
        try:
            signature.bind(*[None] * positional, **{**given, **self.options})
        except TypeError as error:
            known = [name for name in list(signature.parameters)[positional:] if name not in given]
            takes = f"it takes: {', '.join(known)}" if known else "it takes no option"
            name = self.name.partition(":")[2]
            raise ValueError(f"{where} {name}: {error}; {takes}") from None
        for option, value in self.options.items():
            if not _finite(value):
                raise ValueError(f"{where}.{option} is not finite (got {value!r}): give a number")
            _check_type(f"{where}.{option}", value, _hint(self.function, option))


def split(config: Mapping[str, Any], keys: Collection[str]) -> tuple[Call | None, dict[str, Any]]:
    """A config as the call that it holds and the keys of it that are the caller's.

    Raises:
        ValueError: options without a function, or a function within an option.
    """
    own = {key: value for key, value in config.items() if key in keys}
    options = {k: v for k, v in config.items() if k not in (*keys, "_target_", "version")}
    for key, value in options.items():
        if "_target_" in str(value):
            raise ValueError(f".{key} holds a _target_ of its own, which no option may")
        if config.get("_target_") is None:
            raise ValueError(f".{key} is not an option here")
    if config.get("_target_") is None:
        return None, own
    call = Call(target=config["_target_"], options=options, version=config.get("version", 1))
    return call, own


def _hint(function: Callable[..., Any], option: str) -> Any:
    """The type that a function declares for an option; any, where it does not."""
    inner = inspect.unwrap(function.__init__ if inspect.isclass(function) else function)
    parameters = inspect.signature(function).parameters  # a decorator may have added some
    declared = parameters[option].annotation if option in parameters else inspect.Parameter.empty
    if declared is inspect.Parameter.empty:
        return Any
    try:
        return eval(declared, inner.__globals__) if isinstance(declared, str) else declared
    except NameError:  # a name that only type checkers import
        return Any


def _finite(value: Any) -> bool:
    """Whether all numbers in a value are: the rest of a config is checked by its record."""
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_finite, value))
    return not isinstance(value, float) or isfinite(value)


def _check_type(where: str, value: Any, hint: Any) -> None:
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except PydanticSchemaGenerationError:
        return  # a type that no config can write
    except ValidationError as error:
        raise ValueError(f"{where}: {error.errors()[0]['msg']} (got {value!r})") from None
