"""A content-addressed store: build once, ever, and never leave half of anything behind."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

log = logging.getLogger("osrm_exp")


class Artifact(Protocol):
    """A frozen specification whose fields are the product's only inputs."""

    digest: str
    label: str

    def build(self, folder: Path, workshop) -> None:
        """Write the product into an empty folder; raise if it is not fit to keep."""

    def model_dump(self, *, mode: str) -> dict: ...


class Store:
    """Products by the digest of their specification, `root/<kind>/<label>-<digest>/`.

    A product is built in a scratch folder and renamed into place, so what is there is whole. A
    file lock, released by the kernel when its process dies, keeps two processes off one product.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def folder(self, artifact: Artifact) -> Path:
        kind = type(artifact).__name__
        return self.root / kind / f"{artifact.label}-{artifact.digest}"

    def has(self, artifact: Artifact) -> bool:
        return self.folder(artifact).is_dir()

    def get(self, artifact: Artifact, workshop) -> Path:
        """Folder of the product, built now if it is not there."""
        return self.get_all([artifact], workshop)[0]

    def get_all(self, artifacts: Sequence[Artifact], workshop) -> list[Path]:
        """Folders of all products; what another process is building is left for last."""
        missing = [a for a in artifacts if not self.has(a)]
        while missing:
            taken = [a for a in missing if self._build_unless_locked(a, workshop)]
            missing = [a for a in missing if a not in taken]
            if missing and not taken:
                time.sleep(0.5)
        return [self.folder(a) for a in artifacts]

    def _build_unless_locked(self, artifact: Artifact, workshop) -> bool:
        target = self.folder(artifact)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(target.with_name(f".{target.name}.lock"), timeout=0):
                if not target.is_dir():
                    self._build(artifact, target, workshop)
            return True
        except Timeout:
            return False

    def _build(self, artifact: Artifact, target: Path, workshop) -> None:
        scratch = target.with_name(f".{target.name}.scratch")
        shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed
        scratch.mkdir()
        start = time.perf_counter()
        try:
            artifact.build(scratch, workshop)
            spec = json.dumps(artifact.model_dump(mode="json"), indent=2, sort_keys=True)
            (scratch / "spec.json").write_text(spec + "\n")
            _sync(scratch)
            scratch.rename(target)
            kind, seconds = type(artifact).__name__, time.perf_counter() - start
            log.info("%s %s: built in %.0f s", kind, target.name, seconds)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Flush a folder's files to disk, so that the rename cannot overtake them."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
