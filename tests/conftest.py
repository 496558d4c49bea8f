"""Tiny real checkpoints of every family and a tiny suite, on disk, through the production path."""

from __future__ import annotations

import os

# one thread a process, said before torch is loaded: two of two threads each on two cores wait for
# each other most of the time, and models of width 32 have nothing to share out
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

from osrm_exp.artifacts import Workshop
from osrm_exp.compose import cell_from, configuration
from osrm_exp.spec import Cell
from osrm_exp.store import Store

SHARED = Path(__file__).parents[2] / "shared"
WORDS = "a the cat dog bird fox sees likes hears not never runs sleeps red blue big small".split()
SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}
FAMILIES = {
    "bert": "minilm", "roberta": "roberta_large", "t5": "t5_large", "llama": "llama",
    "writer": "llama",
}  # fmt: skip


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """`{family: folder}` of two-layer models, width 32, with a word-level tokenizer."""
    root = tmp_path_factory.mktemp("checkpoints")
    vocabulary = [*SPECIAL.values(), *WORDS]
    size = {"vocab_size": len(vocabulary), "pad_token_id": 0, "eos_token_id": 1}
    encoder = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 64, "type_vocab_size": 1,
    }  # fmt: skip
    t5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    llama = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64,
    }  # fmt: skip
    nets = {
        "bert": lambda: BertForSequenceClassification(BertConfig(**size, **encoder)),
        "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**size, **encoder)),
        "t5": lambda: T5ForSequenceClassification(T5Config(**size, **t5, decoder_start_token_id=0)),
        "llama": lambda: LlamaForSequenceClassification(
            LlamaConfig(**{**size, "pad_token_id": None}, **llama)
        ),
        "writer": lambda: LlamaForCausalLM(
            LlamaConfig(**size, **llama, tie_word_embeddings=True, max_position_embeddings=64)
        ),
    }
    for family, net in nets.items():
        torch.manual_seed(0)
        net().save_pretrained(root / family)
        _tokenizer(vocabulary, padded=family != "llama").save_pretrained(root / family)
    return {family: root / family for family in nets}


def _tokenizer(vocabulary: list[str], padded: bool) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A <s> $B </s>", special_tokens=[("</s>", 1), ("<s>", 3)]
    )
    special = SPECIAL if padded else {k: v for k, v in SPECIAL.items() if k != "pad_token"}
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=names, **special)


@pytest.fixture(scope="session")
def suite(tmp_path_factory) -> Path:
    """A folder of parquet with the columns of four GLUE tasks, 60 + 24 rows each."""
    root = tmp_path_factory.mktemp("suite")
    draw = random.Random(0)
    columns = {
        "cola": (["sentence"], 2), "sst2": (["sentence"], 2),
        "stsb": (["sentence1", "sentence2"], 0), "mnli": (["premise", "hypothesis"], 3),
    }  # fmt: skip
    for task, (texts, labels) in columns.items():
        for split, count in (("train", 60), ("validation", 24)):
            rows = [_row(draw, texts, labels) for _ in range(count)]
            name = f"{split}_matched" if (task, split) == ("mnli", "validation") else split
            (root / task).mkdir(exist_ok=True)
            Dataset.from_list(rows).to_parquet(str(root / task / f"{name}.parquet"))
    return root


def _row(draw: random.Random, texts: list[str], labels: int) -> dict:
    sentences = {t: " ".join(draw.choices(WORDS, k=draw.randint(3, 9))) for t in texts}
    signal = sum(s.split().count("not") + s.split().count("never") for s in sentences.values())
    return {**sentences, "label": min(signal, labels - 1) if labels else float(min(signal, 5))}


TINY = [
    "dataset=glue", "dataset.only=[cola,stsb,mnli]", "tuning.epochs=2", "tuning.batch_size=16",
    "tuning.max_length=32", "tuning.lora.r=4", "tuning.lr=3e-3", "protocol.holdout=0.2",
]  # fmt: skip


WRITTEN = [
    "dataset=instruct", "dataset.only=[say,color,no]", "tuning.lr=1e-2",
    '+dataset.tasks.say={config:stsb,prompt:"{sentence1} never {sentence2}",label:sentence2,'
    "max_new_tokens:5,headline:rouge_l}",
    '+dataset.tasks.color={config:cola,prompt:"{sentence}",labels:[red,blue],'
    "max_new_tokens:3,headline:accuracy}",
    '+dataset.tasks.no={config:sst2,prompt:"the {sentence}",labels:[dog runs,sorry],'
    "refusal:true,max_new_tokens:3,headline:balanced_accuracy}",
]  # fmt: skip


@pytest.fixture
def configured(checkpoints, suite, tmp_path):
    """`configured(family, *overrides)`: a composed, resolved config over the tiny checkpoint."""

    def config(family: str = "roberta", *overrides: str) -> dict:
        chosen = [
            f"model={FAMILIES[family]}", f"model.path={checkpoints[family]}",
            f"dataset.path={suite}", f"paths.store={tmp_path / 'store'}",
            f"paths.results={tmp_path / 'results'}", f"paths.logs={tmp_path / 'logs'}",
            *TINY, *overrides,
        ]  # fmt: skip
        return configuration(chosen)

    return config


@pytest.fixture
def cell(configured):
    """`cell(family, *overrides)`: the cell of such a config."""

    def build(family: str = "roberta", *overrides: str) -> Cell:
        return cell_from(configured(family, *overrides))

    return build


@pytest.fixture
def workshop(tmp_path) -> Workshop:
    return Workshop(Store(tmp_path / "store"), progress=False)


@pytest.fixture
def command(checkpoints, suite, tmp_path):
    """The command line of a tiny cell, its store, results and logs under `tmp_path`."""
    tiny = [
        "dataset=glue", "dataset.only=[cola,sst2]", "tuning.epochs=1", "tuning.batch_size=16",
        "tuning.max_length=32", "tuning.lora.r=2", "protocol.holdout=0.2", "model=roberta_large",
    ]  # fmt: skip
    paths = [f"model.path={checkpoints['roberta']}", f"dataset.path={suite}"]
    paths += [f"paths.{k}={tmp_path / k}" for k in ("store", "results", "logs")]
    return [sys.executable, "-m", "osrm_exp", *tiny, *paths]
