import json
import math
import shutil
from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from osrm_exp.adapter import read_adapter, read_expert, stacked, write_adapter
from osrm_exp.lora import LowRank


def peft_model(checkpoints, **config):
    torch.manual_seed(0)
    net = AutoModelForSequenceClassification.from_pretrained(checkpoints["roberta"])
    options = {"target_modules": ["query", "value"], "task_type": "SEQ_CLS", **config}
    net = get_peft_model(net, LoraConfig(**options)).eval()
    for name, p in net.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=0.1)
    return net


@pytest.mark.parametrize(
    "config",
    [
        {"r": 4, "lora_alpha": 4},
        {"r": 4, "lora_alpha": 16},
        {"r": 4, "lora_alpha": 16, "use_rslora": True},
        {"r": 4, "lora_alpha": 8, "rank_pattern": {"layer.1.attention.self.query": 2},
         "alpha_pattern": {"layer.0.attention.self.value": 3}},
    ],
    ids=["plain", "alpha", "rslora", "patterns"],
)  # fmt: skip
def test_what_is_read_is_what_peft_adds(checkpoints, tmp_path, config):
    net = peft_model(checkpoints, **config)
    net.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    assert len(adapter.updates) == 4 and "classifier.dense.weight" in adapter.heads
    for name, update in adapter.updates.items():
        layer = net.base_model.model.get_submodule(name)
        torch.testing.assert_close(update.delta, layer.get_delta_weight("default"))


def test_what_is_written_gives_peft_the_same_logits(checkpoints, tmp_path):
    net = peft_model(checkpoints, r=4, lora_alpha=16)
    net.save_pretrained(tmp_path / "in")
    adapter = read_adapter(tmp_path / "in")
    updates = {n: LowRank(u.A[: 4 - i % 2], u.B[:, : 4 - i % 2]) for i, (n, u) in
               enumerate(adapter.updates.items())}  # fmt: skip
    write_adapter(tmp_path / "out", updates, adapter.heads, task_type="SEQ_CLS",
                  modules_to_save=["classifier"])  # fmt: skip
    base = AutoModelForSequenceClassification.from_pretrained(checkpoints["roberta"])
    back = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    for name, update in updates.items():
        layer = back.base_model.model.get_submodule(name)
        torch.testing.assert_close(layer.get_delta_weight("default"), update.delta)
    again = read_adapter(tmp_path / "out")
    assert all(torch.equal(again.heads[k], v) for k, v in adapter.heads.items())


def test_a_converted_pissa_is_the_update_of_the_original_base(checkpoints, tmp_path):
    options = {"target_modules": ["query", "value"], "r": 4, "init_lora_weights": "pissa"}
    base = AutoModelForSequenceClassification.from_pretrained(checkpoints["roberta"])
    before = {n: p.detach().clone() for n, p in base.named_parameters()}
    net = get_peft_model(base, LoraConfig(**options))
    net.peft_config["default"].init_lora_weights = True
    net.save_pretrained(tmp_path / "start")
    net.peft_config["default"].init_lora_weights = "pissa"
    for name, p in net.named_parameters():
        if "lora_" in name:
            p.data += 0.1 * torch.randn_like(p)
    net.save_pretrained(tmp_path / "moved")
    with pytest.raises(ValueError, match="moved: init_lora_weights=pissa moves the base"):
        read_adapter(tmp_path / "moved")
    net.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    adapter = read_adapter(tmp_path / "plain")
    merged = net.merge_and_unload()
    for name, update in adapter.updates.items():
        moved = merged.get_submodule(name).weight - before[f"{name}.weight"]
        torch.testing.assert_close(update.delta, moved, atol=1e-5, rtol=1e-4)


def test_only_the_written_modules_are_adapted(tmp_path):
    """`0.q` is the end of `vision.0.q` and of `vision.10.q` in an ending's sense."""
    tower = {str(i): nn.ModuleDict({"q": nn.Linear(5, 3)}) for i in (0, 10)}
    names = ["0.q", "10.q", "vision.0.q", "vision.10.q", "x0.q"]

    def base() -> nn.Module:
        net = nn.ModuleDict({**deepcopy(tower), "vision": nn.ModuleDict(deepcopy(tower))})
        return nn.ModuleDict({**net, "x0": nn.ModuleDict({"q": nn.Linear(5, 3)})})

    for chosen in (["0.q"], ["vision.0.q", "10.q"], names):
        updates = {
            name: LowRank(torch.randn(1 + i % 3, 5), torch.randn(3, 1 + i % 3))
            for i, name in enumerate(chosen)
        }
        write_adapter(tmp_path / str(len(chosen)), updates)
        back = read_adapter(tmp_path / str(len(chosen))).updates
        net = PeftModel.from_pretrained(base(), tmp_path / str(len(chosen)))
        adapted = {n: m for n, m in net.base_model.model.named_modules() if hasattr(m, "lora_A")}
        assert adapted.keys() == back.keys() == updates.keys()
        for name, update in updates.items():
            torch.testing.assert_close(back[name].delta, update.delta)
            torch.testing.assert_close(adapted[name].get_delta_weight("default"), update.delta)


def test_gpt2_is_read_and_written(tmp_path):
    """`Conv1D` stores `[in, out]`; its update is `B A` all the same."""
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 9}
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    options = {"target_modules": ["c_attn"], "fan_in_fan_out": True, "init_lora_weights": False}
    net = get_peft_model(deepcopy(base), LoraConfig(**options))
    net.save_pretrained(tmp_path / "in")
    updates = read_adapter(tmp_path / "in").updates
    (name,) = updates
    assert updates[name].shape == (24, 8)
    expected = net.base_model.model.get_submodule(name).get_delta_weight("default").T
    torch.testing.assert_close(updates[name].delta, expected)
    write_adapter(tmp_path / "out", updates, fan_in_fan_out=True)
    back = PeftModel.from_pretrained(deepcopy(base), tmp_path / "out")
    ids = torch.arange(6)[None]
    torch.testing.assert_close(back(ids).logits, net(ids).logits)


def test_an_adapter_without_a_module_has_rank_zero_there():
    one = LowRank(torch.randn(2, 5), torch.randn(3, 2))
    stacks = stacked([{"q": one}, {"q": one, "v": one}])
    assert stacks["v"].ranks == (0, 2) and stacks["q"].ranks == (2, 2)
    assert torch.equal(stacks["v"].total().delta, one.delta)


@pytest.fixture
def folder(tmp_path):
    """A written adapter of two modules, with a head of two outputs."""
    updates = {n: LowRank(torch.randn(2, 5), torch.randn(3, 2)) for n in ("l.0.q", "l.0.v")}
    heads = {"classifier.dense.weight": torch.randn(3, 3), "classifier.weight": torch.randn(2, 3)}
    write_adapter(tmp_path / "adapter", updates, heads, base_model_name_or_path="org/base")
    return tmp_path / "adapter"


def spoil(folder, tensors: dict | None = None, without: str = "", **config):
    """Tensors are added, replaced or left out, and fields of the config set."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    weights = folder / "adapter_model.safetensors"
    kept = {n: t for n, t in load_file(weights).items() if not without or without not in n}
    save_file({**kept, **(tensors or {})}, weights)


Q = "base_model.model.l.0.q"
ONE = {f"{Q}.lora_A.weight": torch.zeros(2, 5)}


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"without": "q.lora_A"}, "l.0.q lacks lora_A"),
        ({"without": "q.lora_B"}, "l.0.q lacks lora_B"),
        ({"without": "lora_"}, "no factor of a LoRA"),
        ({"r": 4}, r"A \[2, 5\] and B \[3, 2\], its config rank 4"),
        ({"rank_pattern": {"l.0.q": 1}}, "its config rank 1"),
        ({"tensors": {f"{Q}.lora_A.weight": torch.zeros(3, 5)}}, r"A \[3, 5\]"),
        ({"tensors": {f"{Q}.lora_A.weight": torch.zeros(10)}}, r"A \[10\].*a linear module has"),
        ({"tensors": {f"{Q}.lora_B.weight": torch.zeros(3, 2, 1, 1)}}, "a linear module has"),
        ({"tensors": {f"{Q}.lora_A.weight": torch.zeros(2, 0)}}, "a linear module has"),
        ({"tensors": {f"{Q}.lora_A.weight": torch.ones(2, 5).long()}}, "torch.int64"),
        ({"tensors": {f"{Q}.lora_A.weight": torch.full((2, 5), math.inf)}}, "not finite"),
        ({"tensors": {"classifier.bias": torch.full((2,), math.nan)}}, "not finite"),
        ({"tensors": {f"{Q}.lora_magnitude_vector": torch.ones(3)}}, "neither a factor"),
        ({"tensors": {f"{Q}.lora_B.bias": torch.ones(3)}}, "neither a factor"),
        ({"tensors": {f"{Q}.lora_embedding_A": torch.ones(2, 5)}}, "neither a factor"),
        ({"tensors": {"base_model.model.embed_tokens.weight": torch.ones(9, 3)}}, "would lose it"),
        ({"tensors": {"base_model.model.lm_head.weight": torch.ones(9, 3)}}, "would lose it"),
        ({"tensors": {"base_model.model.l.0.norm.weight": torch.ones(3)}}, "would lose it"),
        ({"tensors": {f"{Q}.lora_A.other.weight": torch.zeros(2, 5)}}, "two tensors"),
        ({"modules_to_save": ["score"]}, "classifier.* is neither a factor"),
        ({"lora_alpha": 9e8, "tensors": {f"{Q}.lora_B.weight": torch.ones(3, 2) * 1e38}}, "scaled"),
    ],
)  # fmt: skip
def test_tensors_that_are_no_lora_are_one_sentence(folder, change, sentence):
    spoil(folder, **change)
    with pytest.raises(ValueError, match=sentence) as caught:
        read_adapter(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_keys_that_bear_the_adapters_name_are_read(folder):
    expected = read_adapter(folder)
    weights = folder / "adapter_model.safetensors"
    named = {n.replace("_A.", "_A.default.").replace("_B.", "_B.default."): t for n, t in
             load_file(weights).items()}  # fmt: skip
    head = named.pop("base_model.model.classifier.weight")
    named["base_model.model.classifier.modules_to_save.default.weight"] = head
    save_file(named, weights)
    found = read_adapter(folder)
    assert found.base == expected.base == "org/base" and found.heads.keys() == expected.heads.keys()
    for name, update in expected.updates.items():
        assert torch.equal(found.updates[name].delta, update.delta)


def test_files_that_are_no_adapter_are_one_sentence(folder):
    with pytest.raises(ValueError, match="is not a PEFT adapter"):
        read_adapter(folder.parent)
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for bad in (b"\x80\x02not safetensors", whole[:50], whole[:-5], b""):
        weights.write_bytes(bad)
        with pytest.raises(ValueError, match="is not safetensors"):
            read_adapter(folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="pickled adapters are not read"):
        read_adapter(folder)
    with pytest.raises(ValueError, match="no update to write"):
        write_adapter(folder, {})


def test_a_hub_id_is_read_from_the_cache_and_one_that_is_not_there_is_one_sentence(
    folder, tmp_path, monkeypatch
):
    repo = tmp_path / "hub" / "models--org--adapter"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "v1").write_text("1" * 40)
    shutil.copytree(folder, repo / "snapshots" / ("1" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert read_adapter("org/adapter@v1").updates.keys() == read_adapter(folder).updates.keys()
    with pytest.raises(ValueError, match=r"org/none is no folder here.*give a folder"):
        read_adapter("org/none")


def test_an_expert_needs_the_head_of_its_task(folder):
    assert read_expert(folder, ["classifier"], 2).heads
    with pytest.raises(ValueError, match=r"head has 2 outputs \(classifier.weight\), .* needs 3"):
        read_expert(folder, ["classifier"], 3)
    with pytest.raises(ValueError, match=r"no head pooler.*modules_to_save=\[pooler, classifier\]"):
        read_expert(folder, ["pooler", "classifier"], 2)
    spoil(folder, without="classifier")
    with pytest.raises(ValueError, match="no head classifier"):
        read_expert(folder, ["classifier"], 2)
