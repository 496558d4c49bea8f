"""Lightning's loggers of plain files, with `log_table` and `log_image` as its wandb logger has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger


class TensorBoard(TensorBoardLogger):
    """Its HPARAMS tab shows a run once it is closed: TensorBoard keeps what it is told first, so
    settings and final scores (those logged without a step) are told together."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **{"default_hp_metric": False, **keywords})
        self.settings: dict[str, Any] = {}
        self.scores: dict[str, Any] = {}

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        self.settings |= params

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if step is None:
            self.scores |= metrics
        super().log_metrics(metrics, step)

    def log_table(self, key: str, *, dataframe: pd.DataFrame) -> None:
        self.experiment.add_text(key, dataframe.to_markdown(index=False))

    def log_image(self, key: str, images: Sequence[Any], caption: Sequence[str]) -> None:
        for image, said in zip(images, caption):
            self.experiment.add_image(key, np.asarray(image), dataformats="HWC")
            self.experiment.add_text(f"{key}/caption", said)

    def close(self, status: str) -> None:
        """Tells settings and scores; Lightning's own end of a training does not."""
        super().log_hyperparams(self.settings, self.scores or {"merged/average": float("nan")})
        self.finalize(status)


class Csv(CSVLogger):
    """Tables and pictures lie beside `metrics.csv`."""

    def log_table(self, key: str, *, dataframe: pd.DataFrame) -> None:
        dataframe.to_csv(self._file(f"{key}.csv"), index=False)

    def log_image(self, key: str, images: Sequence[Any], caption: Sequence[str]) -> None:
        for image, said in zip(images, caption):
            image.save(self._file(f"{key}.png"))
            self._file(f"{key}.txt").write_text(f"{said}\n")

    def close(self, status: str) -> None:
        """Writes what is left."""
        self.finalize(status)

    def _file(self, name: str) -> Path:
        file = Path(self.experiment.log_dir, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        return file
