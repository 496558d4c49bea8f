"""What is seen of the real network before anything is trained."""

import shutil

import pytest
import torch
from transformers import (
    FunnelConfig,
    FunnelForSequenceClassification,
    MixtralConfig,
    MixtralForSequenceClassification,
)

from osrm_exp import pipeline, preflight
from osrm_exp.spec import FineTune

LORA = "+tuning.per_task.cola.lora"
SMALL = "lora_alpha: 8, lora_dropout: 0, use_rslora: false"
MOE = "+model.blocks.router=gate"


@pytest.fixture(scope="module")
def odd(checkpoints, tmp_path_factory):
    """Checkpoints of two odd families: one pools its queries, one has a router and experts."""
    root, nets = tmp_path_factory.mktemp("odd"), {}
    nets["funnel"] = FunnelForSequenceClassification(
        FunnelConfig(
            vocab_size=24, block_sizes=[1, 1], d_model=32, n_head=2, d_head=16, d_inner=64,
            num_decoder_layers=0, pad_token_id=0,
        )
    )  # fmt: skip
    nets["mixtral"] = MixtralForSequenceClassification(
        MixtralConfig(
            vocab_size=24, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
            num_experts_per_tok=2, pad_token_id=0,
        )
    )  # fmt: skip
    for family, net in nets.items():
        torch.manual_seed(0)
        net.save_pretrained(root / family)
        for file in checkpoints["bert"].glob("*token*"):
            shutil.copy(file, root / family)
    return {family: root / family for family in nets}


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(FineTune, "build", lambda *_: pytest.fail("trained"))


def funnel(odd, *blocks):
    chosen = ", ".join(f"{block}: {block}_head" for block in blocks)
    return (
        f"model.path={odd['funnel']}", f"model.blocks={{{chosen}}}", "model.heads=[classifier]",
        f"tuning.lora.blocks=[{','.join(blocks)}]", "dataset.only=[cola,mnli]", "tuning.epochs=1",
    )  # fmt: skip


@pytest.mark.parametrize("asks", [["merge=regmean"], ["merge=regmean_pp"], ["merge=fisher"],
                                  ["diagnostics=layers"], ["init=osrm"]])  # fmt: skip
def test_rows_that_fit_no_mask_are_told_before_training(cell, workshop, odd, untrained, asks):
    chosen = cell("bert", *funnel(odd, "q"), *asks)
    with pytest.raises(ValueError, match=r"blocks\.1\.0\.attention\.q_head has input .* mask"):
        pipeline.run(chosen, workshop)


def test_what_asks_for_no_inputs_runs_there(cell, workshop, odd):
    for merge in ("average", "lm_cocktail"):  # losses are of answers, not of modules
        assert pipeline.run(cell("bert", *funnel(odd, "q"), f"merge={merge}"), workshop).rows


def test_one_batch_is_run_once_and_not_where_nothing_is_left_to_train(
    cell, workshop, checkpoints, monkeypatch
):
    seen = []
    monkeypatch.setattr(preflight, "check_inputs", lambda *args: seen.append(args))
    preflight._check_batch.cache_clear()
    only = ("dataset.only=[cola,mnli]", "tuning.epochs=1")
    pipeline.run(cell("roberta", *only, "merge=average"), workshop)
    assert not seen
    for seed in (1, 2):
        pipeline.run(cell("roberta", *only, f"seed={seed}", "merge=regmean"), workshop)
    assert len(seen) == 2  # other rows, another batch
    pipeline.run(cell("roberta", *only, "merge=regmean"), workshop)
    ((_, modules, batch), *_) = seen
    assert len(seen) == 2 and len(modules) == 4 and len(batch["input_ids"]) == 2


@pytest.mark.parametrize("asks", [["merge=regmean"], ["init=osrm"], ["merge=fisher"]])
def test_a_router_is_refused_and_the_attention_beside_it_is_right(
    cell, workshop, odd, untrained, asks
):
    common = (f"model.path={odd['mixtral']}", MOE, "dataset.only=[cola,mnli]", *asks)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.gate is no linear module: LoRA cannot"):
        pipeline.run(cell("llama", *common, "tuning.lora.blocks=[router]"), workshop)


def test_a_mixture_of_experts_goes_through_osrm_and_regmean(cell, workshop, odd):
    common = (f"model.path={odd['mixtral']}", MOE, "dataset.only=[cola,mnli]", "tuning.epochs=1")
    rows = pipeline.run(cell("llama", *common, "init=osrm", "merge=regmean"), workshop).rows
    assert {row["task"] for row in rows} == {"cola", "mnli"}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([f"{LORA}={{r: 4, {SMALL}, blocks: [k]}}"],
         r"adapters of cola \(.*key, …\) and stsb \(.*query, …\) share no module"),
        ([f"{LORA}={{r: 4, {SMALL}, blocks: [q, k]}}", "merge=regmean"],
         r"adapter of cola has .*key, and merge=regmean asks .* tuning\.lora\.blocks=\['q', 'v'\]"),
        ([f"{LORA}={{r: 4, {SMALL}, blocks: [q, k]}}", "init=osrm"],
         r"adapter of cola has .*key, and init=osrm asks for a statistic"),
        ([f"{LORA}={{r: 4, {SMALL}, blocks: [q]}}", "diagnostics=layers"],
         r"cola and stsb do not both adapt .*value.*diagnostics=none"),
        ([f"{LORA}={{r: 64, {SMALL}, blocks: [q]}}"], r"tuning\.lora\.r=64 is above the width"),
        ([f"{LORA}={{r: 2, {SMALL}, blocks: [q, v]}}", "merge=peft_linear"],
         r"merge=peft_linear: .* has adapters of rank \[2, 4\], and factors are added entry"),
        ([f"{LORA}={{r: 4, {SMALL}, blocks: [q, k]}}", "heads=osrm", "init=gaussian"],
         r"adapter of cola has .*key, and heads=osrm asks for a statistic"),
        (["tuning.max_length=1"],
         r"tuning\.max_length=1 leaves cola no token of a text beside the 1 .*: choose at least 2"),
        (["+tuning.per_task.mnli.max_length=3", "dataset.only=[cola,mnli]"],
         r"max_length=3 leaves mnli no token .* the 2 that the tokenizer adds: choose at least 4"),
        (["+tuning.per_task.cola.max_length=100"], r"tuning\.max_length=100 is beyond the 63"),
    ],
)  # fmt: skip
def test_a_task_of_its_own_settings_is_seen_before_training(
    cell, workshop, untrained, overrides, sentence
):
    with pytest.raises(ValueError, match=sentence) as caught:
        pipeline.run(cell("roberta", *overrides), workshop)
    assert "\n" not in str(caught.value)
