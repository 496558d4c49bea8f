"""What a fine-tuning left in `training.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from osrm_exp.artifacts.workshop import Workshop
from osrm_exp.spec import FineTune, Given
from osrm_exp.training.history import replay


def curve(spec: FineTune | Given, folder: Path, workshop: Workshop) -> dict[str, Any]:
    """What `training.json` says, and to a logger that still waits for the curve, the curve.

    Nothing is known of a given adapter, and of one that an older version trained, no curve.
    """
    file = folder / "training.json"
    training: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    if spec.digest in workshop.untold:
        replay(training.get("curve", ()), workshop.logger)
    return training
