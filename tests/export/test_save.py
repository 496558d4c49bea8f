"""Merges as files, from Python: what PEFT and transformers load of them."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from osrm_exp.export.save import save
from osrm_exp.lora import Dense, LowRank
from osrm_exp.merging import merge

IDS = torch.tensor([[3, 5, 7, 9, 11]])


@pytest.fixture(scope="module")
def roberta(checkpoints, tmp_path_factory):
    """The base model's folder, and two adapters on it."""
    root = tmp_path_factory.mktemp("adapters")
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = AutoModelForSequenceClassification.from_pretrained(checkpoints["roberta"])
        options = {"r": 2, "target_modules": ["query", "value"], "init_lora_weights": False}
        get_peft_model(net, LoraConfig(**options)).save_pretrained(root / str(seed))
    return checkpoints["roberta"], [root / "0", root / "1"]


def network(folder, auto=AutoModelForSequenceClassification):
    return auto.from_pretrained(folder).eval()


def moved(net, merged):
    """The network with every delta added by hand."""
    with torch.no_grad():
        for name, update in merged.items():
            net.get_submodule(name).weight += update.delta
    return net


@pytest.mark.parametrize("method, rank", [("task_arithmetic", None), ("ties", 64), ("ties", None)])
def test_an_adapter_and_a_checkpoint_are_the_same_model(roberta, tmp_path, method, rank):
    base, adapters = roberta
    merged = merge(method, adapters)
    expected = moved(network(base), merged)(IDS).logits
    assert save(merged, tmp_path / "net", base=base) == tmp_path / "net"
    torch.testing.assert_close(network(tmp_path / "net")(IDS).logits, expected)
    assert AutoTokenizer.from_pretrained(tmp_path / "net")("the cat").input_ids
    if (method, rank) == ("ties", None):
        with pytest.raises(ValueError, match=r"dense.* rank=K .*base=MODEL"):
            save(merged, tmp_path / "lora")
        assert [path.name for path in tmp_path.iterdir()] == ["net"]
    else:
        save(merged, tmp_path / "lora", rank=rank, base_model_name_or_path=str(base))
        net = PeftModel.from_pretrained(network(base), tmp_path / "lora")
        torch.testing.assert_close(net(IDS).logits, expected, atol=1e-5, rtol=1e-4)


def test_a_loaded_model_stays_as_it_is_and_its_dtype_is_kept(roberta, tmp_path):
    base, adapters = roberta
    merged = merge("average", adapters)
    net = network(base).bfloat16()
    before = {n: p.clone() for n, p in net.named_parameters()}
    save(merged, tmp_path / "out", base=net)
    assert all(torch.equal(before[n], p) for n, p in net.named_parameters())
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype="auto")
    for name, update in merged.items():
        expected = (before[f"{name}.weight"].float() + update.delta).bfloat16()
        assert torch.equal(saved.get_submodule(name).weight, expected)


def test_a_headless_checkpoint_lacks_the_prefix(roberta, tmp_path):
    base, adapters = roberta
    network(base, AutoModel).save_pretrained(tmp_path / "bare")
    merged = merge("average", adapters)
    save(merged, tmp_path / "out", base=tmp_path / "bare")
    one, other = network(tmp_path / "out", AutoModel), moved(network(base), merged).roberta
    torch.testing.assert_close(one(IDS).last_hidden_state, other(IDS).last_hidden_state)


def test_gpt2_is_merged_the_right_way_round(tmp_path):
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 16}
    base = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    base.save_pretrained(tmp_path / "base")
    targets = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    net = get_peft_model(deepcopy(base), LoraConfig(**targets, init_lora_weights=False)).eval()
    net.save_pretrained(tmp_path / "adapter")
    merged = merge("average", [tmp_path / "adapter"])  # h.0.attn.c_proj is square
    save(merged, tmp_path / "out", base=tmp_path / "base")
    torch.testing.assert_close(network(tmp_path / "out", GPT2LMHeadModel)(IDS).logits,
                               net(IDS).logits)  # fmt: skip


def test_what_does_not_fit_leaves_nothing_behind(roberta, checkpoints, tmp_path):
    base, adapters = roberta
    merged, first = merge("average", adapters), next(iter(merge("average", adapters)))
    tied = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16))
    own = LowRank(torch.randn(1, 8), torch.randn(16, 1))
    (tmp_path / "there").mkdir()
    (tmp_path / "weights").mkdir()
    large = LowRank(torch.ones(1, 32), torch.full((32, 1), 1e5))
    half, meta = network(base).half(), network(base).to("meta")
    peft = get_peft_model(network(base), LoraConfig(target_modules=["query"]))
    for call, sentence in {
        lambda out: save(merged, out, base=checkpoints["llama"]): "no linear module roberta",
        lambda out: save(merged, tmp_path / "there"): "there exists already",
        lambda out: save(merged, out, rank=0): "rank 0: a rank is an integer",
        lambda out: save(merged, out, base=adapters[0]): "is an adapter: give the base model",
        lambda out: save(merged, out, base=tmp_path / "weights"): "is not a checkpoint folder",
        lambda out: save(merged, out, base=peft): "PeftModel.*unload",
        lambda out: save(merged, out, base=base, task_type="X"): "task_type is a field of an",
        lambda out: save({first: own}, out, base=base): r"is \[32, 32\] in the base and \[16, 8\]",
        lambda out: save({"lm_head": own}, out, base=tied): "tied to another module's",
        lambda out: save(merge("emr", adapters), out): "task",
        lambda out: save({}, out): "no update to write",
        lambda out: save([merged], out): "merged is a list: give what merge returned",
        lambda out: save(merged, out, base=7): "7 is not a checkpoint folder",
        lambda out: save(merged, out, base=meta): "RobertaForSequenceClassification without w",
        lambda out: save({first: own * torch.nan}, out): f"{first} holds NaN",
        lambda out: save({first: Dense(torch.full((32, 32), torch.inf))}, out, base=base): "NaN",
        lambda out: save({first: large}, out, base=half): "not finite in the base's torch.float16",
        lambda out: save(merged, out, use_rslora=True): "use_rslora is not for you to set",
        lambda out: save(merged, out, bias="all"): "bias is not for you to set",
        lambda out: save(merged, out, r=3): "r is not for you to set",
        lambda out: save(merged, out, tasktype="X"): "tasktype is not .* to give are task_type, ",
    }.items():
        with pytest.raises(ValueError, match=sentence) as caught:
            call(tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert {path.name for path in tmp_path.iterdir()} == {"there", "weights"}
