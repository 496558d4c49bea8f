"""Ray is started here, and its launcher takes what runs.

As Ray starts it hears SIGTERM itself, and then it aborts: the signals are taken back. And the
launcher sets the size of an object store, which Ray refuses where it joins a cluster that runs.
"""

from __future__ import annotations

import signal
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from osrm_exp import signals
from osrm_exp.overrides import plain


class Start(Callback):
    """Before a sweep."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Starts Ray, or joins a cluster."""
        import ray

        try:
            ray.init(**plain(config.hydra.launcher.ray.init))
        except SystemExit:  # what Ray's own handler answers to SIGTERM
            raise signals.Stopped(signal.SIGTERM) from None
        except Exception:  # the launcher tries again, and what it hears is told
            return
        finally:
            signals.listen()
