"""A content-addressed store: build once, ever, and never leave half of anything behind."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from pathlib import Path
from typing import Any, Protocol

from osrm_exp.store import manifest
from osrm_exp.store.lock import Lock
from osrm_exp.store.names import file_name

log = logging.getLogger("osrm_exp")
POLL, TELL = 0.5, 60.0  # seconds between two looks at a lock, between two lines about it
_whole: set[tuple[str, int, int]] = set()  # what this process has verified


class Artifact(Protocol):
    """A frozen specification whose fields are the product's only inputs."""

    @property
    def digest(self) -> str: ...

    @property
    def label(self) -> str: ...

    def build(self, folder: Path, workshop: Any) -> None:
        """Write the product into an empty folder; raise if it is not fit to keep."""

    def model_dump(self, *, mode: str) -> dict: ...


class Store:
    """Products by the digest of their specification, `root/<kind>/<label>-<digest>/`.

    A product is built in a scratch folder and renamed into place, so what is there is whole when it
    comes; once in every process its files are compared with its manifest before it is used. What is
    damaged is moved to `root/damaged/` and built again. A `Lock` keeps two processes off one
    product; what it cannot keep apart builds in folders of its own, and the first one is kept.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def folder(self, artifact: Artifact) -> Path:
        """Where a product lies, or will.

        Raises:
            ValueError: its label is not fit to name a folder, see `file_name`.
        """
        kind = type(artifact).__name__
        return self.root / kind / f"{file_name(artifact.label)}-{artifact.digest}"

    def has(self, artifact: Artifact) -> bool:
        """Whether the product is there and whole."""
        folder = self.folder(artifact)
        return folder.is_dir() and self._damage(folder) is None

    def content(self, artifact: Artifact) -> str:
        """Digest of what the product holds, equal for two that hold the same."""
        return manifest.read(self.folder(artifact))["content"]

    def get(self, artifact: Artifact, workshop: Any) -> Path:
        """Folder of the product, built now if it is not there."""
        return self.get_all([artifact], workshop)[0]

    def get_all(self, artifacts: Sequence[Artifact], workshop: Any) -> list[Path]:
        """Folders of all products; what another process is building is left for last."""
        missing = {self.folder(a): a for a in artifacts if not self.has(a)}
        locks = {folder: Lock(_beside(folder, "held")) for folder in missing}
        told = float("-inf")
        while missing:
            with _way_out(self.root):
                left = {
                    folder: artifact for folder, artifact in missing.items()
                    if not self._built(artifact, folder, locks[folder], workshop)
                }  # fmt: skip
            if len(left) == len(missing):
                first = next(iter(left))
                told = _tell(locks[first], first, told)
                time.sleep(POLL)
            missing = left
        return [self.folder(a) for a in artifacts]

    def _damage(self, folder: Path) -> str | None:
        try:
            stamp = _stamp(folder)
            if stamp in _whole:
                return None
            found = manifest.damage(folder, folder.relative_to(self.root).as_posix())
        except FileNotFoundError:  # another process has set it aside this moment
            return "it is gone"
        if found is None:
            _whole.add(stamp)
        return found

    def _built(self, artifact: Artifact, folder: Path, lock: Lock, workshop: Any) -> bool:
        """Whether the product is there now; False where another process is at it."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock.held() as mine:
            if not mine:
                return False
            if folder.is_dir() and (damage := self._damage(folder)):
                self._set_aside(folder, damage)
            if not folder.is_dir():
                try:
                    self._build(artifact, folder, lock, workshop)
                except Exception:  # our folder is gone if another process took us for dead
                    if lock.mine():
                        raise
                    log.warning("%s: taken over by %s", folder.name, lock.holder())
                    return False
            return True

    def _set_aside(self, folder: Path, damage: str) -> None:
        aside = self.root / "damaged" / folder.parent.name / folder.name
        while aside.exists():
            aside = aside.with_name(f"{aside.name}+")
        aside.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(aside)
        log.warning(
            "%s is damaged: %s. It lies in %s now, and is built again", folder, damage, aside
        )

    def _build(self, artifact: Artifact, folder: Path, lock: Lock, workshop: Any) -> None:
        scratch = _beside(folder, "scratch")
        product = _prepared(scratch, lock.token)
        start = time.perf_counter()
        try:
            artifact.build(product, workshop)
            manifest.write(product, artifact, folder.relative_to(self.root).as_posix())
            _sync(product)
            product.rename(folder)
        except Exception as error:
            if shutil.disk_usage(product.parent).free < 2**16:  # which torch does not say
                raise OSError(ENOSPC, os.strerror(ENOSPC), str(product)) from error
            raise
        finally:
            shutil.rmtree(product, ignore_errors=True)
            if lock.mine() and (folder.is_dir() or not any(scratch.glob("resume/*"))):
                shutil.rmtree(scratch, ignore_errors=True)
        _whole.add(_stamp(folder))
        kind, seconds = type(artifact).__name__, time.perf_counter() - start
        log.info("%s %s: built in %.0f s", kind, folder.name, seconds)


def resume(folder: Path) -> Path:
    """Beside the folder that an artifact is built in, one that outlives an interrupted build.

    What an artifact leaves there it finds again when it is built the next time, perhaps cut short
    by a kill. It is never part of the product, and goes when the product is there.
    """
    found = folder.with_name("resume")
    found.mkdir(exist_ok=True)
    return found


def _prepared(scratch: Path, token: str) -> Path:
    """An empty folder for a product; of what a former process left, `resume` stays."""
    scratch.mkdir(exist_ok=True)
    for left in scratch.iterdir():
        if left.name != "resume":
            shutil.rmtree(left, ignore_errors=True)
    product = scratch / token
    product.mkdir()
    return product


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _stamp(folder: Path) -> tuple[str, int, int]:
    """Another one when the folder is replaced."""
    found = folder.stat()
    return str(folder.absolute()), found.st_ino, found.st_mtime_ns


def _tell(lock: Lock, folder: Path, told: float) -> float:
    """Says what is waited for, once in a while; returns when it was said last."""
    if time.monotonic() - told < TELL:
        return told
    log.info("waits for %s/%s, held by %s", folder.parent.name, folder.name, lock.holder())
    return time.monotonic()


def _sync(folder: Path) -> None:
    """Flush a folder's files to disk, so that the rename cannot overtake them."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


@contextmanager
def _way_out(root: Path) -> Iterator[None]:
    """Says of a store that is full or read-only what helps."""
    try:
        yield
    except Exception as error:
        full = any(os.strerror(code) in str(error) for code in (ENOSPC, EDQUOT))
        if full:
            raise OSError(
                f"the store {root} has no space left; `python -m osrm_exp.store gc` says what no "
                f"result refers to, and the same command continues ({error})"
            ) from error
        closed = isinstance(error, OSError) and error.errno in (EACCES, EPERM, EROFS)
        if closed and str(root) in str(error):
            raise OSError(
                f"the store {root} cannot be written to ({error}); paths.store=DIR takes another"
            ) from error
        raise
