"""Merge adapters from the shell: a PEFT adapter, or with --base a merged checkpoint.

    python -m osrm_exp.merging METHOD ADAPTER... OUT [key=value ...] [--base MODEL] [--rank K]

An adapter is a folder or a hub id (org/name[@revision]); the keys are those of
conf/merge/METHOD.yaml, which explains them and holds their defaults.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from osrm_exp.adapter import located
from osrm_exp.adapter_config import read_fields
from osrm_exp.merging.api import configured, merge


def main(arguments: Sequence[str]) -> None:
    """The command; what a user can mend is told in one sentence."""
    parser = argparse.ArgumentParser(
        "osrm-exp merge", description=__doc__.split("\n")[0],
        usage="%(prog)s METHOD ADAPTER... OUT [key=value ...] [--base MODEL] [--rank K]",
    )  # fmt: skip
    parser.add_argument("method", help="a file of conf/merge")
    parser.add_argument("words", nargs="+", help="adapters, OUT, and key=value of the method")
    parser.add_argument("--base", help="write a checkpoint: this model plus the merge")
    parser.add_argument("--rank", type=int, help="truncate every module to this rank")
    given = parser.parse_intermixed_args(arguments)
    options = [word for word in given.words if re.match(r"[A-Za-z_]\w*=", word)]
    *adapters, out = [word for word in given.words if word not in options] or [""]
    if not adapters:
        parser.error("name one adapter or more, and the folder to write")
    try:
        print(_merge(given.method, adapters, Path(out), options, given.base, given.rank))
    except (ValueError, OSError, OmegaConfBaseException, YAMLError) as error:
        sys.exit(f"osrm_exp: {' '.join(str(error).split())}")


def _merge(
    method: str, adapters: list[str], out: Path, options: list[str], base: str | None, rank: Any
) -> Path:
    if needed := list(configured(method).statistics):
        raise ValueError(
            f"{method} needs the {needed[0]} of every task's data: run it from a config "
            f"(merge={method}), or from Python with {needed[0]}=..."
        )
    if out.exists():
        raise ValueError(f"{out} exists already: name a folder that does not")
    from osrm_exp.export.save import save

    config = {}
    fields = [read_fields(located(adapter)) for adapter in adapters]
    bases, types = {one.base for one in fields}, {one.task_type for one in fields}
    if base is None and len(bases) == 1:
        config["base_model_name_or_path"] = bases.pop()
    if base is None and types == {"CAUSAL_LM"}:  # of another type there is a head to a task
        config["task_type"] = "CAUSAL_LM"
    settings: Any = OmegaConf.to_container(OmegaConf.from_dotlist(options), resolve=True)
    return save(merge(method, adapters, **settings), out, base=base, rank=rank, **config)


if __name__ == "__main__":
    main(sys.argv[1:])
