"""Trainings without what others would say beside them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning and transformers without their advice on cloud loggers and worker counts."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for module in ("lightning", "transformers", "peft"):
                warnings.filterwarnings("ignore", module=module)
            yield
    finally:
        log.setLevel(level)
