"""Checkpoints whose files are changed in place are those that a network would have become."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from osrm_exp.export import network, shards
from osrm_exp.export.save import save
from osrm_exp.lora import Dense, LowRank, Result

SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def updates():
    g = torch.Generator().manual_seed(0)
    one = LowRank(torch.randn(2, 16, generator=g), torch.randn(16, 2, generator=g))
    return {Q: one, DOWN: Dense(torch.randn(16, 24, generator=g))}


def llama(folder, dtype=torch.float32, shard="1GB", **more):
    torch.manual_seed(0)
    config = {**SIZES, "vocab_size": 40, "tie_word_embeddings": False, **more}
    LlamaForCausalLM(LlamaConfig(**config)).to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def tensors(folder):
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shard", ["1GB", "4KB"])
def test_it_is_the_network_with_the_merge_added(tmp_path, dtype, shard):
    base = llama(tmp_path / "base", dtype, shard)
    assert (len(list(base.glob("*.safetensors"))) > 1) == (shard == "4KB")
    save(updates(), tmp_path / "out", base=base)
    net = network.loaded(base)
    network.fold(net, Result(updates()))
    written, expected = tensors(tmp_path / "out"), net.state_dict()
    assert written.keys() == expected.keys() == tensors(base).keys()
    assert all(torch.equal(written[name], expected[name]) for name in written)
    again = LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert again.dtype == dtype and torch.equal(
        again.get_submodule(Q).weight, written[f"{Q}.weight"]
    )


def test_no_network_is_built_where_the_files_say_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(network, "loaded", lambda _: pytest.fail("a network was built"))
    save(updates(), tmp_path / "out", base=llama(tmp_path / "base"))


def changed(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


@pytest.mark.parametrize("fields", [
    {"model_type": "unheard_of"}, {"quantization_config": {"bits": 4}}, {"vocab_size": 16},
    {"auto_map": {"AutoModel": "own.Model"}}, {"tie_encoder_decoder": True},
])  # fmt: skip
def test_files_that_do_not_say_enough(tmp_path, fields):
    base = llama(tmp_path / "base")
    assert shards.places(base, updates()).keys() == updates().keys()
    assert shards.places(changed(base, **fields), updates()) is None


def test_weights_that_are_tied_or_transposed_or_elsewhere_are_left_to_the_network(tmp_path):
    base = llama(tmp_path / "tied", tie_word_embeddings=True)
    assert shards.places(base, ["lm_head"]) is None
    assert shards.places(base, ["model.embed_tokens"]) is None
    assert shards.places(base, [Q.removeprefix("model.")]) is None
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16))
    gpt2.save_pretrained(tmp_path / "gpt2")
    assert shards.places(tmp_path / "gpt2", ["transformer.h.0.attn.c_proj"]) is None
    (tmp_path / "none").mkdir()
    assert shards.places(tmp_path / "none", [Q]) is None


def test_a_delta_of_another_shape_leaves_nothing_behind(tmp_path):
    base = llama(tmp_path / "base")
    with pytest.raises(ValueError, match=r"is \[16, 16\] in the base and \[16, 8\] in the merge"):
        save({Q: LowRank(torch.ones(1, 8), torch.ones(16, 1))}, tmp_path / "out", base=base)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_the_command_needs_no_network_library(tmp_path):
    """Importing them takes longer and holds more than the merge itself."""
    base = llama(tmp_path / "base")
    code = (
        "import sys, torch\nfrom osrm_exp.export.save import save\n"
        "from osrm_exp.lora import LowRank\nfrom osrm_exp.merging import merge\n"
        f"given = {{{Q!r}: LowRank(torch.ones(1, 16), torch.ones(16, 1))}}\n"
        f"save(merge('ties', [given]), {str(tmp_path / 'out')!r}, base={str(base)!r})\n"
        "print({'peft', 'sklearn', 'transformers', 'pandas', 'hydra'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
