"""A checkpoint in miniature: an architecture in a few narrow layers, with random weights.

`+scale=tiny` tries an experiment on it, without a download and through the path that every
checkpoint takes. A model's config says its sizes (`tiny`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from osrm_exp.record import digest

SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}


def tiny(shape: Any, store: str) -> str:
    """The folder of a checkpoint beside a store's artifacts; made where there is none.

    Args:
        shape: what the architecture's config takes: `model_type` and sizes.
        store: the folder of a store.
    """
    sizes: dict[str, Any] = dict(shape)
    folder = Path(store).expanduser() / f".tiny-{sizes['model_type']}-{digest(sizes)}"
    if not folder.is_dir():
        scratch = folder.with_name(f"{folder.name}.{os.getpid()}.scratch")
        _write(sizes, scratch)
        try:
            scratch.rename(folder)
        except OSError:  # another process was first, with the same weights
            shutil.rmtree(scratch)
    return str(folder)


def _write(sizes: Mapping[str, Any], folder: Path) -> None:
    import torch  # not at every start
    from transformers import AutoConfig, AutoModel

    tokenizer = _bytes()
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL.items()}
    config = AutoConfig.for_model(
        **sizes, vocab_size=len(tokenizer), decoder_start_token_id=ids["pad_token"],
        **{f"{name}_id": ids[name] for name in ("pad_token", "eos_token", "bos_token")},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _bytes() -> Any:
    """A tokenizer that knows every text: a token a byte, an end after a text or a pair of them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {word: i for i, word in enumerate(words)}
    inner = Tokenizer(models.BPE(vocabulary, merges=[], unk_token=SPECIAL["unk_token"]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    end, between = SPECIAL["eos_token"], SPECIAL["bos_token"]
    inner.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {between} $B {end}",
        special_tokens=[(end, vocabulary[end]), (between, vocabulary[between])],
    )  # fmt: skip
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=names, **SPECIAL)


OmegaConf.register_new_resolver("tiny", tiny, replace=True)
