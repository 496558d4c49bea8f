import json
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from osrm_exp.adapter import read_adapter, stacked, write_adapter
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


def test_an_adapter_without_a_module_has_rank_zero_there():
    one = LowRank(torch.randn(2, 5), torch.randn(3, 2))
    stacks = stacked([{"q": one}, {"q": one, "v": one}])
    assert stacks["v"].ranks == (0, 2) and stacks["q"].ranks == (2, 2)
    assert torch.equal(stacks["v"].total().delta, one.delta)


def spoil(folder, **config):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


def test_bad_adapters_are_one_sentence(checkpoints, tmp_path):
    with pytest.raises(ValueError, match="is not a PEFT adapter"):
        read_adapter(tmp_path)
    with pytest.raises(ValueError, match="no adapter to merge"):
        stacked([])
    peft_model(checkpoints, r=4).save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(n for n in tensors if "lora_A" in n)
    save_file({**tensors, name: tensors[name] * math.nan}, weights)
    with pytest.raises(ValueError, match="not finite"):
        read_adapter(tmp_path)
    spoil(tmp_path, use_dora=True)
    with pytest.raises(ValueError, match="use_dora"):
        read_adapter(tmp_path)
    spoil(tmp_path, peft_type="IA3", use_dora=False)
    with pytest.raises(ValueError, match="IA3"):
        read_adapter(tmp_path)
    spoil(tmp_path, peft_type="LORA")
    weights.write_bytes(b"\x80\x02not safetensors")
    with pytest.raises(ValueError, match="is not safetensors"):
        read_adapter(tmp_path)
    weights.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match="pickled adapters are not read"):
        read_adapter(tmp_path)
