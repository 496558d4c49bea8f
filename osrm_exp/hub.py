"""What comes from the hub, and one sentence where it cannot be reached."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_lost: dict[str, str] = {}  # a hub out of reach costs its retries once, not once a cell


def fetched(source: str, load: Callable[[], T], instead: str) -> T:
    """`load()`, from the hub or its cache.

    Raises:
        ValueError: it cannot be had; says why and what to do `instead`.
    """
    if source not in _lost:
        try:
            return load()
        except (OSError, ValueError) as error:
            _lost[source] = (
                f"{source} could be had neither from the hub nor from its cache "
                f"({first_line(error)}); {instead}"
            )
    raise ValueError(_lost[source])


def located(source: Path | str, files: Sequence[str] = ADAPTER) -> Path:
    """A local folder as it is, a hub id (`org/name[@revision]`) as a snapshot of these files."""
    folder, (name, _, revision) = Path(source).expanduser(), str(source).partition("@")
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        return folder

    def load() -> Path:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(files)))

    return fetched(f"{source} is no folder here, and", load, "give a folder")


def first_line(error: BaseException) -> str:
    """An error's first line, or its kind where it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
