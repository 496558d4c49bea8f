"""LoRA initialisations x merging methods x models x suites, compared honestly."""

from pathlib import Path

__version__ = "0.1.0"

_inside = Path(__file__).parent / "conf"  # an installed wheel carries the configs here
CONF = _inside if _inside.is_dir() else Path(__file__).parents[1] / "conf"
