"""Networks, adapters and checkpoints of real shapes with random weights, for `gpu.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
)

from osrm_exp.compose import cell_from, configuration
from osrm_exp.lora import LowRank
from osrm_exp.model import adapted_modules, heads_of, in_float32
from osrm_exp.spec import Cell, Model, Task, Tuning
from osrm_exp.tasks import mini

LLAMA = {"vocab_size": 128256, "num_key_value_heads": 8, "pad_token_id": 0}
CONFIGS = {
    "roberta_large": lambda: RobertaConfig(
        vocab_size=50265, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
        intermediate_size=4096, max_position_embeddings=514, type_vocab_size=1, pad_token_id=1,
    ),
    "t5_large": lambda: T5Config(
        vocab_size=32128, d_model=1024, d_kv=64, d_ff=4096, num_layers=24, num_decoder_layers=24,
        num_heads=16, decoder_start_token_id=0,
    ),
    "llama3_2_1b": lambda: LlamaConfig(
        hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, head_dim=64,
        intermediate_size=8192, **LLAMA,
    ),
    "llama3_2_3b": lambda: LlamaConfig(
        hidden_size=3072, num_hidden_layers=28, num_attention_heads=24, head_dim=128,
        intermediate_size=8192, **LLAMA,
    ),
    "llama3_8b": lambda: LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, head_dim=128,
        intermediate_size=14336, **LLAMA,
    ),
}  # fmt: skip
TINY = {
    "vocab_size": 100, "hidden_size": 64, "d_model": 64, "num_hidden_layers": 2, "num_layers": 2,
    "num_decoder_layers": 2, "num_attention_heads": 4, "num_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "d_kv": 16, "intermediate_size": 128, "d_ff": 128,
}  # fmt: skip
EOS = 1  # T5 reads its answer there


@dataclass(frozen=True)
class Shape:
    """A network, the tuning that `conf/` gives it, and the batches that it is fed."""

    name: str  # of conf/model
    precision: str
    length: int
    batch: int
    recomputed: bool
    tiny: bool

    @property
    def config(self) -> PreTrainedConfig:
        config = CONFIGS[self.name]()
        for key, value in TINY.items() if self.tiny else ():
            if hasattr(config, key):
                setattr(config, key, value)
        return config

    @cached_property
    def cell(self) -> Cell:
        return cell_from(configuration([
            f"model={self.name}", "dataset=mini", "dataset.only=[sentiment]",
            f"tuning.precision={self.precision}", f"tuning.batch_size={self.batch}",
            f"tuning.gradient_checkpointing={str(self.recomputed).lower()}",
        ]))  # fmt: skip

    @property
    def model(self) -> Model:
        return self.cell.model

    @property
    def task(self) -> Task:
        return self.cell.tasks[0]

    @property
    def tuning(self) -> Tuning:
        return self.cell.tuning

    def operations(self, net: PeftModel) -> dict[str, float]:
        """Floating point operations of a step by both conventions, see `gpu.py`."""
        tokens, d, count = self.batch * self.length, *self._attentions(net)
        lora = sum(p.numel() for name, p in net.named_parameters() if "lora_" in name)
        frozen = sum(
            module.weight.numel() for name, module in net.named_modules()
            if isinstance(module, nn.Linear)
            and not any(part in name for part in ("lora_", *self.model.heads))
        )  # fmt: skip
        attention = tokens * count * 12 * self.length * d
        causal = 0.5 if isinstance(self.config, LlamaConfig) else 1.0
        passes = 4 + 2 * self.recomputed
        again = 4 / 3 if self.recomputed else 1.0
        return {
            "hardware": tokens * (passes * frozen + 6 * lora) + causal * again * attention,
            "conventional": tokens * 6 * frozen + attention,
        }

    def _attentions(self, net: PeftModel) -> tuple[int, int]:
        """Width of the queries of an attention, and how many attentions a token meets."""
        last = self.model.blocks["q"].rpartition(".")[2]
        queries = [m for name, m in net.named_modules() if name.rpartition(".")[2] == last]
        return queries[0].out_features, len(queries)


def backbone(shape: Shape, device: torch.device) -> PreTrainedModel:
    """What `model.load_backbone` gives, with random weights that never lie anywhere else."""
    config, torch_type = shape.config, {"bf16": torch.bfloat16, "fp32": torch.float32}
    config.num_labels = shape.task.outputs
    torch.manual_seed(0)
    with device:
        net = AutoModelForSequenceClassification.from_config(
            config, dtype=torch_type[shape.precision], attn_implementation=shape.model.attention
        )
    for head in heads_of(net, shape.model).values():
        in_float32(head)
    return net


def network(shape: Shape, device: torch.device) -> PeftModel:
    """What `artifacts.start.network` makes of it."""
    net, lora = backbone(shape, device), shape.tuning.lora
    if shape.recomputed:
        net.gradient_checkpointing_enable({"use_reentrant": False})
    config = LoraConfig(
        task_type="SEQ_CLS", modules_to_save=list(shape.model.heads),
        target_modules=list(adapted_modules(net, shape.model, lora.blocks)),
        **lora.model_dump(exclude={"blocks"}),
    )  # fmt: skip
    return get_peft_model(net, config)


def fed(shape: Shape, seed: int) -> dict[str, Tensor]:
    """A full batch of random tokens without padding, with labels."""
    generator = torch.Generator().manual_seed(seed)
    size = shape.batch, shape.length
    ids = torch.randint(5, shape.config.vocab_size, size, generator=generator)
    ids[:, -1] = EOS
    labels = torch.arange(shape.batch) % 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def adapters(
    layers: int, tiny: bool, device: torch.device | str = "cpu", tasks: int = 8
) -> list[Mapping[str, LowRank]]:
    """Random adapters of q and v of Llama-3-8B, of rank 16."""
    generator = torch.Generator().manual_seed(0)
    widths = {"q": (96, 96), "v": (48, 96)} if tiny else {"q": (4096, 4096), "v": (1024, 4096)}

    def update(m: int, n: int, rank: int) -> LowRank:
        A = torch.randn(rank, n, generator=generator) / n**0.5
        return LowRank(A, torch.randn(m, rank, generator=generator) / rank**0.5).to(device)

    return [
        {f"layers.{i}.{x}": update(m, n, 2 if tiny else 16)
         for i in range(layers) for x, (m, n) in widths.items()}
        for task in range(tasks)
    ]  # fmt: skip


def checkpoint(folder: Path) -> None:
    """A random two-layer BERT that knows the words of the generated suite."""
    tasks = ("sentiment", "similarity", "inference3")
    columns = [c for task in tasks for c in mini.generate(task, "train", 256, seed=0).values()]
    words = {word for c in columns for v in c if isinstance(v, str) for word in v.split()}
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: i for i, word in enumerate([*special, *sorted(words)])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=64,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
