"""A hundred malformed adapter folders: a sentence each, or exactly what PEFT itself adds."""

from __future__ import annotations

import dataclasses
import json
import random
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from osrm_exp.adapter import read_adapter, write_adapter
from osrm_exp.lora import LowRank

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ABOUT = {  # fields that say where an adapter came from or goes, not what its factors mean
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "task_type",
    "auto_mapping", "revision", "modules_to_save", "eva_config", "runtime_config", "peft_version",
    "base_model_name_or_path", "megatron_core", "qalora_group_size", "lora_dropout",
    "fan_in_fan_out", "ensure_weight_tying", "inference_mode",
}  # fmt: skip
KNOWN = sorted({f.name for f in dataclasses.fields(LoraConfig)} - ABOUT)
FIELDS = [*KNOWN, "", "R", "new\nfield"]
JUNK = [
    None, True, False, 0, -1, 3, 2.5, 1e400, float("nan"), 10**400, "", "pissa", "x\ny", "on", [],
    [1], {}, {"l.0.q": 1}, {"l.0.q": 2}, {"(a+)+": 2}, {"[": 2}, {"q": None}, {"": 2}, [[[]]],
]  # fmt: skip


class Net(nn.Module):
    """Two modules that are adapted, one that is not."""

    def __init__(self):
        super().__init__()
        self.l = nn.ModuleList([nn.ModuleDict({n: nn.Linear(5, 3) for n in ("q", "v", "k")})])
        self.classifier = nn.Linear(3, 2)


def field(draw: random.Random, folder: Path) -> bool:
    config = json.loads((folder / CONFIG).read_text())
    name, value = draw.choice(FIELDS), draw.choice(JUNK)
    (folder / CONFIG).write_text(json.dumps({**config, name: value}))
    return False


def text(draw: random.Random, folder: Path) -> bool:
    whole = (folder / CONFIG).read_text()
    cut = draw.randrange(len(whole) - 2)
    files = [whole[:cut], "[" * 10**5, f"[{whole}]", "null", '"r"', whole + whole, "\0" * 9, "{}"]
    (folder / CONFIG).write_text(draw.choice(files))
    return True


def tensor(draw: random.Random, folder: Path) -> bool:
    """One half of a factor is lost, or another thing than it was."""
    tensors = load_file(folder / WEIGHTS)
    name = draw.choice([name for name in tensors if "lora_" in name])
    X = tensors.pop(name)
    narrow = X[:-1] if "lora_A" in name else X[:, :-1]  # one rank less
    others = [
        X.flatten(), X.mT, X[None], X[:0], X[:, :0], narrow, X * torch.nan, X / 0,
        X.long(), X > 0, X.cfloat(), X.repeat(2, 2), X[..., None, None], X[0, 0], None,
    ]  # fmt: skip
    if (other := draw.choice(others)) is not None:
        tensors[name] = other.contiguous()
    save_file(tensors, folder / WEIGHTS)
    return True


def key(draw: random.Random, folder: Path) -> bool:
    """One half of a factor under another name, or a tensor that no LoRA has."""
    tensors = load_file(folder / WEIGHTS)
    name = draw.choice([name for name in tensors if "lora_" in name])
    cut = draw.randrange(len("base_model.model."), len(name))
    names = [name[:cut] + name[cut + 1 :], name[:cut] + "x" + name[cut:], f"{name}.weight", "",
             name.replace("lora_", "lora_C"), f"{name[:-6]}bias", name[:-7]]  # fmt: skip
    tensors[draw.choice(names)] = tensors.pop(name)
    save_file(tensors, folder / WEIGHTS)
    return True


def stranger(draw: random.Random, folder: Path) -> bool:
    names = ["embed_tokens.weight", "lm_head.weight", "l.0.k.weight", "l.0.q.base_layer.weight",
             "l.0.q.lora_magnitude_vector", "l.0.q.lora_A.x.weight", "l.0.q.lora_B.bias", "x",
             "l.0.norm.weight", "l.0.q.lora_embedding_A", "l.0.k.lora_A.weight"]  # fmt: skip
    name = f"base_model.model.{draw.choice(names)}"
    save_file({**load_file(folder / WEIGHTS), name: torch.ones(3, 3)}, folder / WEIGHTS)
    return True


def bytes_(draw: random.Random, folder: Path) -> bool:
    file = folder / draw.choice([CONFIG, WEIGHTS])
    whole = bytearray(file.read_bytes())
    for _ in range(draw.randint(1, 3)):
        whole[draw.randrange(len(whole))] = draw.randrange(256)
    file.write_bytes(whole if draw.random() < 0.7 else whole[: draw.randrange(len(whole))])
    return False


def files(draw: random.Random, folder: Path) -> bool:
    file = folder / draw.choice([CONFIG, WEIGHTS])
    file.unlink()
    kind = draw.choice(["none", "folder", "empty", "loop"])
    if kind == "folder":
        file.mkdir()
    elif kind == "empty":
        file.touch()
    elif kind == "loop":
        file.symlink_to(file)
    return True


MUTATIONS = [field, field, field, text, tensor, tensor, key, stranger, bytes_, files]


@pytest.mark.parametrize("seed", range(100))
def test_a_malformed_adapter_is_a_sentence_or_what_peft_adds(tmp_path, seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    updates = {n: LowRank(torch.randn(2, 5), torch.randn(3, 2)) for n in ("l.0.q", "l.0.v")}
    heads = {f"classifier.{n}": p.detach() for n, p in nn.Linear(3, 2).named_parameters()}
    write_adapter(tmp_path, updates, heads, modules_to_save=["classifier"])
    wrong = MUTATIONS[seed % len(MUTATIONS)](draw, tmp_path)
    try:
        read = read_adapter(tmp_path).updates
    except ValueError as error:
        assert str(tmp_path) in str(error) and "\n" not in str(error) and len(str(error)) < 600
        return
    assert not wrong
    net, X = Net(), torch.randn(4, 5)
    before = {name: net.get_submodule(name)(X) for name in updates}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = PeftModel.from_pretrained(net, tmp_path).base_model.model.l[0]
    assert hasattr(after["q"], "lora_A") and not hasattr(after["k"], "lora_A")
    for name, update in read.items():
        added = after[name[-1]](X) - before[name]
        torch.testing.assert_close(X @ update.delta.mT, added, rtol=1e-4, atol=1e-4)


def test_some_are_read_and_most_are_not(tmp_path):
    """So that the above is no test of one branch."""
    refused = 0
    for seed in range(100):
        folder = tmp_path / str(seed)
        write_adapter(folder, {"l.0.q": LowRank(torch.randn(2, 5), torch.randn(3, 2))})
        MUTATIONS[seed % len(MUTATIONS)](random.Random(seed), folder)
        try:
            read_adapter(folder)
        except ValueError:
            refused += 1
    assert 70 <= refused <= 97
