"""Merging from Python, of real PEFT folders of every sort, by every method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden import dense
from peft import LoraConfig, get_peft_model
from synthetic import statistics
from transformers import AutoModelForSequenceClassification

import osrm_exp.merging
from osrm_exp.adapter import read_adapter
from osrm_exp.lora import Dense, LowRank
from osrm_exp.merging import merge
from osrm_exp.merging.api import configured

CONF = Path(__file__).parents[2] / "conf" / "merge"
every = pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))

ADAPTERS = {
    "plain": {"r": 4, "lora_alpha": 4},
    "alpha": {"r": 4, "lora_alpha": 16},
    "rslora": {"r": 4, "lora_alpha": 16, "use_rslora": True},
    "rank": {"r": 2, "lora_alpha": 3},
    "pattern": {"r": 4, "lora_alpha": 8, "rank_pattern": {"layer.1.attention.self.query": 3}},
    "targets": {"r": 4, "lora_alpha": 8, "target_modules": ["key", "value"]},
    "zero": {"r": 4, "lora_alpha": 8},
}
SETS = {
    "rslora, alpha": ["plain", "alpha", "rslora"],
    "unequal ranks": ["plain", "rank", "pattern"],
    "other targets": ["plain", "targets", "alpha"],
    "a shared A": ["plain", "same A", "alpha"],
    "a zero adapter": ["plain", "zero", "alpha"],
}


@pytest.fixture(scope="module")
def folders(checkpoints, tmp_path_factory) -> dict[str, Path]:
    """PEFT's own folders, and the deltas that PEFT would add, by `folder.name`."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, (name, config) in enumerate([*ADAPTERS.items(), ("same A", ADAPTERS["plain"])]):
        net = AutoModelForSequenceClassification.from_pretrained(checkpoints["roberta"])
        options = {"target_modules": ["query", "value"], "task_type": "SEQ_CLS", **config}
        net = get_peft_model(net, LoraConfig(**options))
        for parameter, p in net.named_parameters():
            torch.manual_seed(0 if "lora_A" in parameter and name == "same A" else seed)
            if "lora_" in parameter and not (name == "zero" and "lora_B" in parameter):
                torch.nn.init.normal_(p, std=0.1)
        net.save_pretrained(root / name)
        layers = {
            n: layer.get_delta_weight("default").detach()
            for n, layer in net.base_model.model.named_modules()
            if hasattr(layer, "get_delta_weight")
        }
        torch.save(layers, root / f"{name}.pt")
    return {path.name: path for path in root.iterdir() if path.is_dir()}


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    """What PEFT itself adds."""
    return torch.load(folder.with_suffix(".pt"), weights_only=True)


@every
@pytest.mark.parametrize("kind", SETS)
def test_every_sort_of_adapter_is_merged_or_answered_in_one_sentence(folders, name, kind):
    method = configured(name)
    if method.search:
        with pytest.raises(ValueError, match=f"{name} is found by a search on rows of the tasks"):
            merge(name, [folders["plain"], folders["alpha"]])
        return
    chosen = [folders[k] for k in SETS[kind]][: 2 if "two_tasks" in method.laws else 3]
    shapes = {m: LowRank(u.A, u.B) for f in chosen for m, u in read_adapter(f).updates.items()}
    try:
        merged = merge(name, chosen, **statistics(method, shapes, len(chosen)))
        assert set(merged) == set(shapes)
        for module, update in merged.items():
            assert dense(update).shape[-2:] == shapes[module].shape
            assert dense(update).isfinite().all()
    except ValueError as error:
        assert len(str(error)) > 20 and "\n" not in str(error)
        assert kind in (
            "unequal ranks",
            "other targets",
        )  # factors of unequal ranks cannot be added
        assert method.space == "factors" or "rank" in str(error)


@pytest.mark.parametrize("kind", SETS)
def test_a_mean_is_the_mean_of_what_peft_adds(folders, kind):
    chosen = [folders[name] for name in SETS[kind]]
    added = [deltas(folder) for folder in chosen]
    merged = merge("average", chosen)
    assert set(merged) == {module for delta in added for module in delta}
    for module, update in merged.items():
        zero = torch.zeros(update.shape)
        expected = sum(delta.get(module, zero) for delta in added) / 3
        torch.testing.assert_close(dense(update), expected, rtol=1e-5, atol=1e-7)


def test_folders_and_updates_are_the_same_and_inputs_stay(folders):
    paths = [folders["plain"], str(folders["rank"])]
    updates = [read_adapter(path).updates for path in paths]
    kept = [{m: u.A.clone() for m, u in update.items()} for update in updates]
    one, other = merge("ties", paths), merge("ties", updates)
    for module in one:
        assert torch.equal(dense(one[module]), dense(other[module]))
    for before, update in zip(kept, updates):
        assert all(torch.equal(before[m], update[m].A) for m in update)


def test_defaults_come_from_the_yaml_and_hyperparameters_replace_them(folders):
    pair = [folders["plain"], folders["alpha"]]
    default = configured("task_arithmetic").settings["scaling"]
    plain, named = merge("task_arithmetic", pair), merge("task_arithmetic", pair, scaling=default)
    twice = merge("task_arithmetic", pair, scaling=2 * default)
    for module in plain:
        torch.testing.assert_close(dense(plain[module]), dense(named[module]))
        torch.testing.assert_close(2 * dense(plain[module]), dense(twice[module]))
    assert osrm_exp.merging.merge is merge


@every
def test_every_method_is_found_and_its_defaults_pass(name):
    """Also where a module bears the function's name."""
    configured(name).check()


def test_one_adapter_is_merged_too(folders):
    merged = merge("average", [folders["rslora"]])
    for module, delta in deltas(folders["rslora"]).items():
        torch.testing.assert_close(dense(merged[module]), delta)


def test_what_is_wrong_is_said_in_one_sentence(folders):
    pair = [folders["plain"], folders["alpha"]]
    for call, sentence in {
        lambda: merge("../merge/ties", pair): "there is no merge",
        lambda: merge("tise", pair): "there is no merge 'tise'; there are: .*average",
        lambda: merge("ties", pair, lam=1): "lam.*it takes:.*density",
        lambda: merge("ties", folders["plain"]): "give a list of adapters",
        lambda: merge("ties", str(folders["plain"])): "give a list of adapters",
        lambda: merge("ties", []): "no adapter to merge",
        lambda: merge("ties", ["nowhere"]): "nowhere is not a PEFT adapter",
        lambda: merge("regmean", pair): "regmean needs .* pass gram=",
        lambda: merge("regmean", pair, gram={}): "gram has no entry for the module .*query",
        lambda: merge("ties", pair, space="moon"): "space 'moon' is unknown",
    }.items():
        with pytest.raises(ValueError, match=sentence) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_what_was_read_is_taken_and_a_gradient_left_behind(folders):
    pair = [folders["plain"], folders["alpha"]]
    expected, read = merge("ties", pair), [read_adapter(folder) for folder in pair]
    learned = {
        m: LowRank(u.A.clone().requires_grad_(), u.B.clone().requires_grad_())
        for m, u in read[0].updates.items()
    }
    for given in (read, (folder for folder in pair), [learned, read[1]]):
        for module, update in merge("ties", given).items():
            assert torch.equal(update.delta, expected[module].delta)
            assert not update.delta.requires_grad


A, B = torch.ones(2, 3), torch.ones(4, 2)


@pytest.mark.parametrize(
    "given, sentence",
    [
        (None, "adapter 2 is a NoneType: give a folder"),
        (3, "adapter 2 is a int"),
        ({"q": A}, "adapter 2 holds for q .* a Tensor: give LowRank"),
        ({"q": (A, B)}, "adapter 2 holds for q .* a tuple"),
        ({"q": LowRank(A[None], B[None])}, "adapter 2 holds for q .* a stack"),
        ({"q": Dense(torch.ones(4, 3))}, r"adapter 2 holds for q .* a Dense: .*truncate\(rank\)"),
        (
            {"q": LowRank(A.to("meta"), B.to("meta"))},
            "adapter 2 holds for q factors on the meta device",
        ),
    ],
)
def test_what_is_no_adapter_is_one_sentence(given, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}") as caught:
        merge("average", [{"q": LowRank(A, B)}, given])
    assert "\n" not in str(caught.value)
