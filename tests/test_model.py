import pytest
import torch
from torch import nn

from osrm_exp.lora import Dense, LowRank
from osrm_exp.model import adapted_modules, applied, heads_of, load_backbone, new_heads, skeleton


def test_blocks_find_every_attention_of_a_family(cell):
    counts = {"bert": 4, "roberta": 4, "t5": 12, "llama": 4}  # q and v; T5: self, self, cross
    for family, count in counts.items():
        model = cell(family).model
        found = adapted_modules(skeleton(model, 2), model, ["q", "v"])
        assert len(found) == count and all(isinstance(m, nn.Linear) for m in found.values())
    assert any("EncDecAttention.v" in name for name in
               adapted_modules(skeleton(cell("t5").model, 2), cell("t5").model, ["v"]))  # fmt: skip


def test_a_block_can_be_told_apart_by_more_parts_of_its_name(cell):
    blocks = {
        "o": "attention.output.dense", "up": "intermediate.dense", "down": "layer.*.output.dense",
        "norm": "LayerNorm", "gone": "layer.output.dense",
    }  # fmt: skip
    model = cell("bert").model.model_copy(update={"blocks": blocks})
    net = skeleton(model, 2)
    for block, end in {"o": "attention.output.dense", "up": "intermediate.dense"}.items():
        found = adapted_modules(net, model, [block])
        assert len(found) == 2 and all(name.endswith(f".{end}") for name in found)
    down = adapted_modules(net, model, ["down"])
    assert len(down) == 2 and not any("attention" in name for name in down)
    every = adapted_modules(net, model, ["down", "up", "o"])
    assert len(every) == 6 and "pooler" not in " ".join(every)
    with pytest.raises(ValueError, match="is no linear module"):
        adapted_modules(net, model, ["norm"])
    with pytest.raises(ValueError, match=r"has no module \.layer\.output\.dense"):
        adapted_modules(net, model, ["gone"])


@pytest.mark.parametrize("family", ["bert", "roberta", "t5", "llama"])
def test_a_task_gets_its_own_head_back_whatever_its_width(cell, family):
    model = cell(family).model
    trained = heads_of(load_backbone(model, 3, precision="fp32"), model)
    state = {
        f"{path}.{k}": v for path, head in trained.items() for k, v in head.state_dict().items()
    }
    heads = new_heads(model, 3, state)
    net = load_backbone(model, 1, precision="fp32").eval()
    ids = torch.randint(4, 20, (2, 7))
    ids[:, -1] = 1
    with applied(net, {}, heads), torch.no_grad():
        assert net(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (2, 3)
    with torch.no_grad():
        assert net(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (2, 1)
    with pytest.raises(ValueError, match="does not fit"):
        new_heads(model, 2, state)


def test_a_checkpoint_of_another_kind_is_refused(cell, checkpoints, tmp_path):
    model = cell("roberta").model
    for file in checkpoints["bert"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = (checkpoints["roberta"] / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="does not hold roberta"):
        load_backbone(model.model_copy(update={"path": str(tmp_path)}), 2, precision="fp32")


def test_a_small_update_of_a_bf16_network_is_not_rounded_away():
    layer = nn.Linear(16, 16, dtype=torch.bfloat16)
    net = nn.ModuleDict({"layer": layer})
    x = torch.randn(4, 16, dtype=torch.bfloat16)
    update = LowRank(torch.randn(2, 16), torch.randn(16, 2) * 1e-3)
    exact = (layer(x).float() + x.float() @ update.delta.mT).bfloat16()
    for form in (update, Dense(update.delta)):
        with applied(net, {"layer": form}):
            assert torch.equal(layer(x), exact)
    assert not torch.equal(layer(x), exact)
