"""What a checkpoint or a dataset *is*, wherever it lies."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from omegaconf import OmegaConf


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
