"""Ray is started here, in a process of its own, and its launcher takes what runs.

Ray hears SIGTERM itself, and neither signal may come while it starts: it aborts. And the launcher
sets the size of an object store, which Ray refuses where it joins a cluster that runs.
"""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from osrm_exp import signals
from osrm_exp.overrides import plain


class Start(Callback):
    """Before a sweep."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Starts Ray, or joins a cluster."""
        signals.step_aside()
        import ray

        try:
            ray.init(**plain(config.hydra.launcher.ray.init))
        except Exception:  # the launcher tries again, and what it hears is told
            return
