"""What a checkpoint or a dataset *is*, wherever it lies."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from osrm_exp.hub import ADAPTER, located

if TYPE_CHECKING:
    from osrm_exp.spec import Model, Task

WEIGHTS = {".safetensors", ".bin"}
READ = {
    ".safetensors", ".json", ".txt", ".model", ".jinja", ".bpe", ".spm", ".tiktoken",
    ".parquet", ".csv", ".tsv", ".jsonl",
}  # fmt: skip


def identity(path: Any, revision: str | None, option: str) -> str:
    """What a checkpoint or dataset *is*: the digest of a local folder's files, else its hub id.

    Raises:
        ValueError: the path looks like a folder and there is none, or nothing that can be read.
    """
    if not (isinstance(path, str) and path and path.isprintable()):
        raise ValueError(f"{option}={path!r} is neither a folder nor a hub id")
    folder = Path(path).expanduser()
    if folder.is_dir():
        files = sorted(_files(folder, option))
        return _files_digest(tuple((p, p.stat().st_size, p.stat().st_mtime_ns) for p in files))
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise ValueError(f"{option}={path} is not a folder")
    return f"{path}@{revision}" if revision else path


def adapter_identity(source: str, option: str) -> str:
    """What an adapter *is*: its commit on a hub, else the digest of its config and tensors.

    A branch or a tag is looked up, since it may have moved.

    Raises:
        ValueError: neither a PEFT folder nor `org/name@revision`, or one that cannot be had.
    """
    folder, name = Path(source).expanduser(), ""
    if not folder.is_dir():
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*@\w[\w./-]*", source):
            raise ValueError(
                f"{option}={source} is no folder, and a hub id names its revision: "
                "org/name@revision"
            )
        if not unpinned(source):
            return source
        folder, name = located(source), f"{source}:"
    files = [folder / file for file in ADAPTER]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{option}={source} is no PEFT adapter: it holds no {missing[0]}")
    return name + _files_digest(tuple((p, p.stat().st_size, p.stat().st_mtime_ns) for p in files))


def source_of(name: str, fields: Mapping[str, Any]) -> tuple[str, str]:
    """Where the rows of a task lie, and what they are."""
    path, config = fields.get("path"), fields.get("config")
    folder = Path(path).expanduser() if isinstance(path, str) else None
    if folder and folder.is_dir():
        return str(folder), identity(str(folder / (config or name)), None, "dataset.path")
    found = identity(path, fields.get("revision"), "dataset.path")
    return str(path), f"{found}:{config}" if config else found


def check_unchanged(model: Model, task: Task) -> None:
    """Whether a local checkpoint and local rows are what they were when a cell was composed.

    Raises:
        ValueError: a file was changed meanwhile, and what was made of it belongs to no address.
    """
    rows = Path(task.path, task.config or task.name)
    for folder, known, option in (
        (Path(model.path).expanduser(), model.weights, "model.path"),
        (rows, task.source, "dataset.path"),
    ):
        if folder.is_dir() and identity(str(folder), None, option) != known:
            raise ValueError(f"{option}={folder} was changed meanwhile: run it again")


def unpinned(identity: str) -> bool:
    """Whether an identity is a hub id without a commit: what a name or a branch stands for moves.

    A task's source may end in `:config`.
    """
    return "/" in identity and not re.search(r"@[0-9a-f]{7,40}(:|$)", identity)


def _files(folder: Path, option: str) -> set[Path]:
    """What is read of a folder: rows, or a checkpoint's config, tokenizer and weights.

    Weights are safetensors with the shards that an index names, else pickled tensors.
    """
    files = {p for p in folder.iterdir() if p.suffix in READ and p.is_file()}
    for index in folder.glob("*.index.json"):
        files |= {folder / shard for shard in _shards(index)}
    if not any(p.suffix == ".safetensors" for p in files):
        files |= set(folder.glob("pytorch_model*.bin"))
    _check(files, folder, option)
    return files


def _check(files: set[Path], folder: Path, option: str) -> None:
    if not files:
        raise ValueError(f"{option}={folder} holds no file that can be read")
    if (folder / "config.json") in files and not any(p.suffix in WEIGHTS for p in files):
        raise ValueError(
            f"{option}={folder} holds no weights that can be loaded: it needs model.safetensors or "
            "pytorch_model.bin"
        )
    if missing := sorted(p for p in files if not p.is_file()):
        raise ValueError(f"{option}={folder} has an index that names {missing[0].name}: no file")


def _shards(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"{index} is no index of shards: it needs a weight_map") from None


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
