"""Frozen records: what is computed gives the address, where it lies and how it is spelt do not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

R = TypeVar("R", bound="Record")


class Record(BaseModel):
    """A frozen record whose unknown keys and wrong types are errors.

    A field with `exclude=True` says where something lies or what it is called, never what it is. A
    field at its Python default says nothing either: one that is added later, with a default that
    means "as before", moves no address.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def address(self) -> dict[str, Any]:
        """What is computed, as plain data."""
        return {
            name: meaning(value)
            for name, field in type(self).model_fields.items()
            if not field.exclude
            and (value := getattr(self, name)) != field.get_default(call_default_factory=True)
        }

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the record's kind and address."""
        return digest([type(self).__name__, self.address()])

    def __hash__(self) -> int:
        return hash(self.digest)


def meaning(value: Any) -> Any:
    """A value as JSON that does not depend on its spelling: 1.0 is 1, a tuple is a list."""
    if isinstance(value, Record):
        return value.address()
    if isinstance(value, Mapping):
        return {key: meaning(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [meaning(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def digest(data: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of plain data; the order of keys has no say."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def build(cls: type[R], fields: Mapping[str, Any], where: str) -> R:
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
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] in ("missing", "value_error"):
            raise ValueError(f"{key}{'' if said.startswith('.') else ': '}{said}") from None
        raise ValueError(f"{key}: {said} (got {first['input']!r})") from None
