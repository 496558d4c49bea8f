"""Merging loaded adapters, held against PEFT's own `add_weighted_adapter`."""

from __future__ import annotations

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForSequenceClassification

from osrm_exp.merging import merge
from osrm_exp.merging.for_peft import add_merged_adapter, updates_of

IDS = torch.tensor([[3, 5, 7, 9, 11]])


@pytest.fixture
def live(checkpoints):
    """A model with the adapters `one`, of other scaling `two`, and on other modules `three`."""
    torch.manual_seed(0)
    net = AutoModelForSequenceClassification.from_pretrained(checkpoints["roberta"])
    options = {"r": 3, "init_lora_weights": False}
    targets = {"target_modules": ["query", "value"]}
    net = get_peft_model(net, LoraConfig(**options, **targets, lora_alpha=6), "one")
    net.add_adapter("two", LoraConfig(**options, **targets, lora_alpha=3))
    net.add_adapter("three", LoraConfig(**options, target_modules=["key", "value"]))
    return net.eval()


def deltas(net, name: str) -> dict[str, torch.Tensor]:
    """What PEFT adds."""
    return {
        module: layer.get_delta_weight(name).detach()
        for module, layer in net.get_base_model().named_modules()
        if isinstance(layer, LoraLayer) and name in layer.scaling
    }


WEIGHTS = [0.7, 0.4]
KINDS = {
    "linear": ("peft_linear", {"lora_scaling": [2.0, 1.0]}),
    "cat": ("peft_cat", {}),
    "svd": ("peft_svd", {"svd_rank": 2}),
    "ties": ("peft_ties", {"lora_scaling": [2.0, 1.0], "density": 0.5}),
    "magnitude_prune": ("peft_magnitude_prune", {"lora_scaling": [2.0, 1.0], "density": 0.5}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_pefts_at_equal_settings(live, kind):
    method, options = KINDS[kind]
    if kind == "svd" and peft.__version__ < "0.20":
        pytest.skip("PEFT applies LoRA's scaling twice here up to 0.19")
    theirs = {k: v for k, v in options.items() if k in ("svd_rank", "density")}
    live.add_weighted_adapter(["one", "two"], WEIGHTS, "theirs", kind, **theirs)
    add_merged_adapter(
        live, ["one", "two"], "ours", method, weights=WEIGHTS, scaling=1.0, **options
    )
    expected, found = deltas(live, "theirs"), deltas(live, "ours")
    assert expected.keys() == found.keys() and len(found) == 4
    for module, delta in expected.items():
        torch.testing.assert_close(found[module], delta, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method, rank", [("average", None), ("knots_ties", 4), ("ties", 2)])
def test_the_new_adapter_is_the_merge_and_nothing_else_changes(live, method, rank):
    before = {n: (p.clone(), p.requires_grad) for n, p in live.named_parameters()}
    active, names = live.active_adapters, ["one", "two", "three"]
    add_merged_adapter(live, names, "new", method, rank=rank)
    merged = merge(method, [updates_of(live, name) for name in names])
    found = deltas(live, "new")
    assert found.keys() == merged.keys() and len(found) == 6
    for module, update in merged.items():
        expected = update if rank is None else update.truncate(rank)
        torch.testing.assert_close(found[module], expected.delta.float(), atol=1e-5, rtol=1e-4)
    assert live.active_adapters == active
    for name, (p, trained) in before.items():
        after = live.get_parameter(name)
        assert torch.equal(after, p) and after.requires_grad == trained
    assert not any(p.requires_grad for n, p in live.named_parameters() if ".new." in n)
    alone = live(IDS).logits
    live.set_adapter("new")
    assert not torch.equal(live(IDS).logits, alone)


def test_what_is_read_is_what_peft_adds(live):
    for name in ("one", "two", "three"):
        updates = updates_of(live, name)
        for module, delta in deltas(live, name).items():
            torch.testing.assert_close(updates[module].delta, delta)
        assert len(updates) == 4


def test_what_is_wrong_is_one_sentence_and_adds_nothing(live):
    live.add_adapter("dora", LoraConfig(target_modules=["query"], use_dora=True))
    live.add_adapter("words", LoraConfig(target_modules=["word_embeddings"]))
    live.add_adapter("other", LoraConfig(target_modules=["key"]))
    known = set(live.peft_config)
    for call, sentence in {
        lambda: add_merged_adapter(
            live, ["one", "no"], "new", "average"
        ): "no adapter 'no'; it has",
        lambda: add_merged_adapter(live, ["one"], "two", "average"): "has an adapter 'two' already",
        lambda: add_merged_adapter(live, ["one", "two"], "new", "ties"): r"dense.*rank=K",
        lambda: add_merged_adapter(live, ["one", "dora"], "new", "average"): "dora: use_dora=True",
        lambda: add_merged_adapter(live, ["one", "words"], "new", "average"): "is not linear",
        lambda: add_merged_adapter(live, ["one", "other"], "new", "average"): "share no module",
        lambda: add_merged_adapter(live, ["one", "two"], "new", "emr"): "task",
        lambda: add_merged_adapter(live, [], "new", "average"): "no adapter to merge",
        lambda: add_merged_adapter(
            live, "one", "new", "average"
        ): "is one name, 'one': give a list",
        lambda: add_merged_adapter(live, ["one"], "a.b", "average"): "'a.b' names no adapter",
        lambda: add_merged_adapter(live, ["one"], "", "average"): "'' names no adapter",
        lambda: add_merged_adapter(live, ["one"], None, "average"): "None names no adapter",
        lambda: add_merged_adapter(live, ["one"], "new", "average", rank=-1): "rank -1: a rank is",
        lambda: add_merged_adapter(
            live.get_base_model(), ["one"], "new", "average"
        ): "is a RobertaForSequenceClassification, no PeftModel",
    }.items():
        with pytest.raises(ValueError, match=sentence) as caught:
            call()
        assert "\n" not in str(caught.value) and set(live.peft_config) == known
