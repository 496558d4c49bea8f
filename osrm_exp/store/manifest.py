"""What an artifact consists of, written when it is built and compared before it is used.

`manifest.json` lies in the artifact's folder: its place in the store, its inputs, what it needs,
every file with size and SHA-256, the versions that made it, and a SHA-256 of all that, for rows
repeat its content and `gc` believes its needs; nothing of the machine. An artifact without one,
left by an older version, cannot be told from a damaged one: it is rebuilt.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

NAME = "manifest.json"
KEYS = {"place", "inputs", "needs", "files", "content", "code", "libraries"}
LIBRARIES = ("torch", "transformers", "peft", "lightning", "datasets", "safetensors")


def write(folder: Path, artifact: Any, place: str) -> None:
    """Describes a finished product; `place` is its path inside the store."""
    files = {name: _signature(folder / name) for name in _files(folder)}
    found = {
        "place": place,
        "inputs": artifact.model_dump(mode="json"),
        "needs": sorted({f"{type(a).__name__}/{a.label}-{a.digest}" for a in _needs(artifact)}),
        "files": files,
        "content": _content(files),
        "code": _code(),
        "libraries": _libraries(),
    }
    found["seal"] = _seal(found)
    (folder / NAME).write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    try:
        found = json.loads((folder / NAME).read_text())
        seal = found.pop("seal", None)  # older ones have none
        if set(found) != KEYS:
            raise ValueError("keys are missing, or too many")
        if seal not in (None, _seal(found)) or _content(found["files"]) != found["content"]:
            raise ValueError("altered since it was written")
        return found
    except FileNotFoundError:
        raise ValueError(f"it has no {NAME}") from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"its {NAME} is damaged ({error})") from None


def damage(folder: Path, place: str) -> str | None:
    """What is wrong with an artifact, in words that follow its name; None where it is whole."""
    try:
        found = read(folder)
    except ValueError as error:
        return str(error)
    if found["place"] != place:
        return f"it is another one, {found['place']}"
    for name, signature in found["files"].items():
        try:
            size = (folder / name).stat().st_size
            if size != signature.get("bytes"):
                return f"{name} has {size} bytes in place of {signature.get('bytes')}"
            if _signature(folder / name) != signature:
                return f"the checksum of {name} is not the one it was built with"
        except (FileNotFoundError, IsADirectoryError):
            return f"{name} is missing"
    return None


def _files(folder: Path) -> list[str]:
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != NAME)
    return sorted(p.relative_to(folder).as_posix() for p in found)


def _signature(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _seal(found: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _content(files: Mapping[str, Mapping[str, Any]]) -> str:
    """16 digits over the numbers: tensors where there are any. PEFT writes the modules of
    `adapter_config.json` in another order each time, which is no other adapter."""
    kept = [name for name in files if name.endswith(".safetensors")] or list(files)
    text = "".join(f"{name}:{files[name]['sha256']}\n" for name in sorted(kept))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _needs(value: Any) -> Iterator[Any]:
    """The artifacts among a record's fields."""
    inner = value.values() if isinstance(value, Mapping) else value
    if hasattr(value, "model_dump"):
        inner = dict(value).values()
    elif not isinstance(value, Mapping | tuple | list):
        return
    for part in inner:
        if hasattr(part, "build"):
            yield part
        yield from _needs(part)


@cache
def _libraries() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


@cache
def _code() -> str:
    """The package's version and, as its local part, 8 digits over its source files."""
    root, total = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        total.update(f"{file.relative_to(root).as_posix()}\n".encode() + file.read_bytes())
    return f"{version('osrm-exp')}+{total.hexdigest()[:8]}"
