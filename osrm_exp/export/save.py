"""Merged updates as files that others load, from Python: a PEFT adapter or a whole checkpoint.

merged = merge("ties", ["adapters/mnli", "adapters/rte"], density=0.2)
save(merged, "merged", base="FacebookAI/roberta-large")
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from osrm_exp.adapter import located, write_adapter
from osrm_exp.export import shards
from osrm_exp.lazy import each
from osrm_exp.lora import LowRank, Result, Update, is_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
             "*.model", "chat_template*")  # fmt: skip


def save(
    merged: Mapping[str, Update],
    out: Path | str,
    *,
    base: Path | str | PreTrainedModel | None = None,
    rank: int | None = None,
    **config: Any,
) -> Path:
    """Writes a merge to `out`, whole or not at all: an adapter, or with `base` a checkpoint.

    Args:
        merged: what `merge` returned.
        out: a folder that does not exist yet.
        base: what the adapters were trained on, a folder, a hub id (`org/name[@revision]`) or a
            loaded model; its weights keep their dtype, and a loaded model stays as it is.
        rank: truncates every module; a dense result needs it to become an adapter.
        config: further fields of an adapter's `LoraConfig` (`base_model_name_or_path`, …).

    Raises:
        ValueError: a result that does not fit the form asked for or the base, or `out` exists.
    """
    result = Result(_sound(merged), rank)
    if base is not None and config:
        raise ValueError(f"{next(iter(config))} is a field of an adapter; a checkpoint has none")
    with whole(out) as folder:
        if base is None:
            write_adapter(folder, low_rank(result), **config)
        else:
            source = base if isinstance(base, nn.Module) else located(str(base), CHECKPOINT)
            _write_checkpoint(folder, source, result)
    return Path(out)


def _write_checkpoint(folder: Path, source: Path | nn.Module, result: Result) -> None:
    """A module at a time into a copy of the files where they say enough, else as a network."""
    if isinstance(source, Path) and (places := shards.places(source, result.merged)):
        shards.patch(source, folder, places, result)
    else:
        from osrm_exp.export.network import fold, loaded  # late: takes longer than many a merge

        net = loaded(source)
        fold(net, result)
        net.save_pretrained(folder)
    if isinstance(source, Path):
        _copy_tokenizer(source, folder)


CHECKPOINT = ("*.json", "*.safetensors", *TOKENIZER)


def _sound(merged: Mapping[str, Update]) -> Mapping[str, Update]:
    """The merge, module by module, refused where it is not finite."""
    if not isinstance(merged, Mapping):
        raise ValueError(f"merged is a {type(merged).__name__}: give what merge returned")

    def checked(module: str, update: Update) -> Update:
        parts = getattr(update, "parts", ())
        if any(part.is_meta for part in parts) or not all(map(is_finite, parts)):
            raise ValueError(f"the update of {module} holds NaN, infinity or no numbers at all")
        return update

    return each(checked, merged)


@contextmanager
def whole(out: Path | str) -> Iterator[Path]:
    """A scratch folder that becomes `out` at the end; after an error neither is there."""
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out} exists already: name a folder that does not")
    scratch = out.with_name(f".{out.name}.scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def low_rank(result: Result) -> dict[str, LowRank]:
    """Balanced factors of every module.

    Raises:
        ValueError: a module that is dense, or that tasks do not share.
    """
    factors = {}
    for module, update in result:
        single = update.single
        if single.rank is None:
            raise ValueError(
                f"{module} is dense, which no LoRA holds exactly: truncate the merge with rank=K "
                "(--rank K), or write a checkpoint with base=MODEL (--base MODEL; --merged of "
                "osrm_exp.export)"
            )
        factors[module] = single.balanced()
    return factors


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for file in {file for pattern in TOKENIZER for file in source.glob(pattern)}:
        if file.is_file():
            shutil.copy(file, folder / file.name)
