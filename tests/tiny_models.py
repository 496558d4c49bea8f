"""Two-layer models of every family, in memory, and batches of known lengths."""

import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    OPTConfig,
    OPTForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

FAMILIES = ("roberta", "t5", "llama")
PAD, EOS = 1, 2
IDS = {"vocab_size": 50, "pad_token_id": PAD, "eos_token_id": EOS}
# relative positions as input, flat rows, token first, routed experts
ODD = ("deberta", "opt", "xlnet", "mixtral")
LINEAR = {
    "query", "key", "value", "q", "k", "v", "q_proj", "k_proj", "v_proj",
    "query_proj", "key_proj", "value_proj", "fc1", "layer_1", "gate",
}  # fmt: skip


def model(family: str, labels: int = 3, seed: int = 0) -> nn.Module:
    """A model with random weights, width 16, in eval mode; llama has grouped queries."""
    torch.manual_seed(seed)
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, **IDS}
    t5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, **IDS}
    net = {
        "roberta": lambda: RobertaForSequenceClassification(
            RobertaConfig(
                **sizes, num_attention_heads=2, max_position_embeddings=40, num_labels=labels
            )
        ),
        "t5": lambda: T5ForSequenceClassification(
            T5Config(**t5, decoder_start_token_id=PAD, num_labels=labels)
        ),
        "t5_text": lambda: T5ForConditionalGeneration(T5Config(**t5, decoder_start_token_id=PAD)),
        "llama": lambda: LlamaForSequenceClassification(
            LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, num_labels=labels)
        ),
        "deberta": lambda: DebertaV2ForSequenceClassification(
            DebertaV2Config(
                **sizes, num_attention_heads=2, max_position_embeddings=40, num_labels=labels,
                relative_attention=True, share_att_key=True, pos_att_type=["c2p", "p2c"],
                max_relative_positions=7, position_biased_input=False, pooler_hidden_size=16,
            )
        ),
        "opt": lambda: OPTForSequenceClassification(
            OPTConfig(
                **IDS, num_hidden_layers=2, hidden_size=16, ffn_dim=32, num_attention_heads=2,
                max_position_embeddings=40, word_embed_proj_dim=16, num_labels=labels,
            )
        ),
        "gpt2": lambda: GPT2ForSequenceClassification(
            GPT2Config(
                **IDS, n_layer=2, n_embd=16, n_head=2, n_positions=40, num_labels=labels
            )
        ),
        "distilbert": lambda: DistilBertForSequenceClassification(
            DistilBertConfig(
                **IDS, n_layers=2, dim=16, n_heads=2, hidden_dim=32, max_position_embeddings=40,
                num_labels=labels,
            )
        ),
        "bart": lambda: BartForSequenceClassification(
            BartConfig(
                **IDS, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
                max_position_embeddings=40, num_labels=labels, decoder_start_token_id=EOS,
            )
        ),
        "mpnet": lambda: MPNetForSequenceClassification(
            MPNetConfig(
                **sizes, num_attention_heads=2, max_position_embeddings=40, num_labels=labels
            )
        ),
        "mixtral": lambda: MixtralForSequenceClassification(
            MixtralConfig(
                **sizes, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
                num_experts_per_tok=2, num_labels=labels,
            )
        ),
        "xlnet": lambda: XLNetForSequenceClassification(
            XLNetConfig(**IDS, n_layer=2, d_model=16, n_head=2, d_inner=32, num_labels=labels)
        ),
    }[family]()  # fmt: skip
    for parameter in net.parameters():  # far from linear, so that every token matters
        parameter.requires_grad_(False).mul_(5 if parameter.dim() > 1 else 1)
    return net.eval()


def attention(net: nn.Module) -> list[str]:
    """Names of all query, key and value modules; of the odd families some of their MLP too."""
    return [name for name, _ in net.named_modules() if name.rpartition(".")[2] in LINEAR]


def batch(lengths: list[int], width: int, seed: int = 0) -> dict[str, Tensor]:
    """Right-padded samples of random tokens that end in `EOS`, with class labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), width), PAD)
    for row, length in zip(ids, lengths):
        row[:length] = torch.randint(3, 50, (length,), generator=generator)
        row[length - 1] = EOS
    labels = torch.arange(len(lengths)) % 3
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}


def rows_of(batch: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {key: value[rows] for key, value in batch.items()}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest entry of a difference, relative to its module's largest entry."""
    assert a.keys() == b.keys()
    return max(((a[m] - b[m]).abs().max() / a[m].abs().max()).item() for m in a)
