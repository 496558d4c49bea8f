"""Overrides -> configuration -> cell, and a sweep -> its cells: what Hydra does, without a job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from osrm_exp import CONF


def configuration(overrides: Sequence[str]) -> dict[str, Any]:
    """The composed, resolved configuration of one cell, without Hydra's own part."""
    composed = _composed(overrides)
    kept = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(composed)  # for ${hydra:...}
    try:
        return OmegaConf.to_container(kept, resolve=True)
    finally:
        HydraConfig.instance().cfg = before


def _composed(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)
