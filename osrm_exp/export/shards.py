"""A merge added to a checkpoint's files: copies of them, changed in place, a module at a time.

No network is built, so that the memory is that of one module, and what no adapter changes stays as
it is, bit by bit. Not all files say enough for that (`places`).
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from osrm_exp.lora import Result, is_finite

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
OTHERS = ("config.json", "generation_config.json", "model.safetensors.index.json")

ODD = ("quantization_config", "tie_encoder_decoder", "auto_map")  # of a config


class Place(NamedTuple):
    """Where the weight of a module lies."""

    file: str
    start: int  # bytes
    shape: tuple[int, ...]
    dtype: torch.dtype


def places(source: Path, modules: Iterable[str]) -> dict[str, Place] | None:
    """Where the weights of modules lie in a folder of safetensors; None where that is not certain.

    So it is where names differ from those of the adapters, where a weight may be tied to another
    (as wide as the vocabulary), is quantized, or may be stored transposed (GPT-2's).
    """
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        stored = dict(_stored(source))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # no such files: whoever loads the network says what is wrong
    if not _is_plain(config):
        return None
    found = {module: stored.get(f"{module}.weight") for module in modules}
    certain = {
        module: place
        for module, place in found.items()
        if place and len(place.shape) == 2 and place.shape[0] != config.get("vocab_size")
    }
    return certain if len(certain) == len(found) else None


def _is_plain(config: Mapping[str, Any]) -> bool:
    """Whether a linear module's weight is stored as it is: `[out, in]`, for that module alone."""
    name = str(config.get("model_type")).replace("-", "_")
    home = importlib.util.find_spec("transformers")
    if not (home and home.origin) or any(map(config.get, ODD)):
        return False
    code = Path(home.origin).parent / f"models/{name}/modeling_{name}.py"  # read, not imported
    return code.is_file() and "Conv1D" not in code.read_text(encoding="utf-8")


def _stored(source: Path) -> Iterator[tuple[str, Place]]:
    """The tensors of a checkpoint that have a floating dtype, by name."""
    for file in _files(source):
        with (source / file).open("rb") as data:
            size = int.from_bytes(data.read(8), "little")
            header = json.loads(data.read(size))
        for name, tensor in header.items():
            if name != "__metadata__" and tensor["dtype"] in DTYPES:
                start = 8 + size + tensor["data_offsets"][0]
                yield name, Place(file, start, tuple(tensor["shape"]), DTYPES[tensor["dtype"]])


def _files(source: Path) -> list[str]:
    index = source / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))


def patch(source: Path, out: Path, places: Mapping[str, Place], result: Result) -> None:
    """Copies a checkpoint to `out` and adds a merge to it, each weight rounded once to its dtype.

    Raises:
        ValueError: a module of another shape, or that the merge makes infinite.
    """
    for name in (*OTHERS, *_files(source)):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    for module, update in result:
        place, delta = places[module], update.single.delta
        del update  # else it lives on beside the next one
        _add(out / place.file, place, module, delta)
        del delta


def _add(file: Path, place: Place, module: str, delta: Tensor) -> None:
    held = bytearray(math.prod(place.shape) * place.dtype.itemsize)
    with file.open("r+b") as data:
        data.seek(place.start)
        data.readinto(held)
        weight = torch.frombuffer(held, dtype=place.dtype).view(place.shape)
        check_fits(module, weight, delta)
        weight.add_(delta)
        check_finite(module, weight)
        data.seek(place.start)
        data.write(held)


def check_fits(module: str, weight: Tensor, delta: Tensor) -> None:
    """Whether a delta has the shape of a weight.

    Raises:
        ValueError: it has not.
    """
    if delta.shape != weight.shape:
        raise ValueError(
            f"{module} is {list(weight.shape)} in the base and {list(delta.shape)} in the merge: "
            "give the model that the adapters were trained on"
        )


def check_finite(module: str, weight: Tensor) -> None:
    """Whether a merged weight holds numbers.

    Raises:
        ValueError: it is beyond its dtype.
    """
    if not is_finite(weight):
        raise ValueError(
            f"{module} is not finite in the base's {weight.dtype}: load it in float32 and give the "
            "loaded model as base"
        )
