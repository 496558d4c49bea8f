import logging

import pytest
import tiny_models
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from osrm_exp.checkpoint import told_once
from osrm_exp.identity import identity
from osrm_exp.lora import Dense, LowRank
from osrm_exp.model import (
    adapted_modules,
    check_fit,
    heads_of,
    load_backbone,
    load_tokenizer,
    new_heads,
    skeleton,
    transposed,
)
from osrm_exp.placing import applied
from osrm_exp.spec import Model
from osrm_exp.statistics import gram
from osrm_exp.statistics.layout import check_inputs


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


FOUND = {  # what people bring along: query, head, longest input
    "distilbert": ("q_lin", ["pre_classifier", "classifier"], 40),
    "deberta": ("query_proj", ["pooler", "classifier"], None),
    "mpnet": ("attn.q", ["classifier"], 38),
    "gpt2": ("c_attn", ["score"], 40),
    "opt": ("q_proj", ["score"], 40),
    "bart": ("q_proj", ["classification_head"], 40),
    "roberta": ("query", ["classifier"], 38),
}


@pytest.fixture
def found(checkpoints, tmp_path):
    """`found(family)`: a tiny checkpoint on disk with a trained head of three labels."""

    def save(family):
        folder = tmp_path / family
        tiny_models.model(family).save_pretrained(folder)
        for file in checkpoints["bert"].glob("*token*"):
            (folder / file.name).write_bytes(file.read_bytes())
        query, heads, _ = FOUND[family]
        return Model(
            name=family, path=str(folder), blocks={"q": query}, heads=tuple(heads),
            weights=identity(str(folder), None, "model.path"),
        )  # fmt: skip

    return save


@pytest.mark.parametrize("family", FOUND)
def test_a_checkpoint_as_it_is_found_loads_adapts_and_has_a_new_head(found, family):
    model = found(family)
    torch.manual_seed(1)
    net = load_backbone(model, 3, precision="fp32", dropout=0.25)
    rates = [m.p for m in net.modules() if isinstance(m, nn.Dropout)]
    assert set(rates) <= {0.25} and (rates or family in ("opt", "bart"))
    assert (
        family not in ("opt", "bart") or net.config.dropout == net.config.attention_dropout == 0.25
    )
    trained, base = tiny_models.model(family).state_dict(), net.base_model_prefix
    for name, parameter in net.named_parameters():
        if name.startswith(f"{base}."):
            assert torch.equal(parameter, trained[name])
        elif name.endswith("weight"):
            assert not torch.allclose(parameter, trained[name], atol=1e-3)
    torch.manual_seed(1)
    again = load_backbone(model, 3, precision="fp32").state_dict()
    assert all(torch.equal(t, again[name]) for name, t in net.state_dict().items())
    modules = adapted_modules(net, model, ["q"], 4)
    assert transposed(modules) == (family == "gpt2")
    data = tiny_models.batch([5, 3], 5)
    check_inputs(net.eval(), list(modules), data)
    grams = gram(net, [data], list(modules), level="token", include_padding=False)
    assert all(g.shape == (16, 16) and g.trace() > 0 for g in grams.values())


@pytest.mark.parametrize("family", FOUND)
def test_what_has_no_place_in_the_network_is_refused(found, family):
    model, longest = found(family), FOUND[family][2]
    net = skeleton(model, 2)
    check_fit(net, model, longest or 10**6)
    if longest:
        with pytest.raises(ValueError, match=rf"max_length={longest + 1} is beyond the {longest} "):
            check_fit(net, model, longest + 1)


def test_a_pad_token_outside_the_embedding_is_refused(found):
    model = found("gpt2")
    tokenizer = load_tokenizer(model)
    tokenizer.add_tokens([f"new{i}" for i in range(60)])
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    with pytest.raises(ValueError, match=r"pads with token \d+, outside the 50 rows"):
        check_fit(skeleton(model, 2), model, 8)


def test_an_architecture_without_sdpa_runs_eagerly(found):
    net = load_backbone(found("deberta"), 2, precision="fp32")
    assert net.config._attn_implementation == "eager"
    assert (
        load_backbone(found("roberta"), 2, precision="fp32").config._attn_implementation == "sdpa"
    )


def test_a_home_folder_is_a_path(found, tmp_path, monkeypatch):
    model = found("distilbert")
    monkeypatch.setenv("HOME", str(tmp_path))
    home = model.model_copy(update={"path": "~/distilbert"})
    assert identity(home.path, None, "model.path") == model.weights
    load_backbone(home, 2, precision="fp32")


def test_what_is_adapted_is_told_once(found, caplog):
    model = found("bart")
    net = skeleton(model, 2)
    told_once.cache_clear()
    with caplog.at_level(logging.INFO, "osrm_exp"):
        for _ in range(2):
            adapted_modules(net, model, ["q"])
    told = [r.getMessage() for r in caplog.records if "adapts" in r.getMessage()]
    assert len(told) == 1 and "1 model.decoder.layers.*.encoder_attn.q_proj" in told[0]


def test_an_adapter_of_conv1d_is_b_a_all_the_same(found):
    model = found("gpt2")
    net = load_backbone(model, 2, precision="fp32").eval()
    modules = adapted_modules(net, model, ["q"], 4)
    data = {k: v for k, v in tiny_models.batch([5, 3], 5).items() if k != "labels"}
    updates, plain = {}, net(**data).logits
    for name, module in modules.items():
        out = module.weight.shape[1]
        updates[name] = LowRank(torch.randn(4, 16), torch.randn(out, 4) * 0.1)
    with applied(net, updates):
        expected = net(**data).logits
    config = LoraConfig(
        r=4, lora_alpha=4, target_modules=list(modules), fan_in_fan_out=transposed(modules)
    )
    adapted = get_peft_model(net, config).eval()
    for name, update in updates.items():
        layer = adapted.base_model.model.get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(update.A)
        layer.lora_B["default"].weight.data.copy_(update.B)
    torch.testing.assert_close(adapted(**data).logits, expected)
    assert not torch.allclose(plain, expected, atol=1e-3)
