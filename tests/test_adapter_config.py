"""Which LoRA configs are read, and the sentence that refuses the others."""

import dataclasses
import time

import pytest
from peft import LoraConfig
from peft.utils.other import get_pattern_key

from osrm_exp.adapter_config import HARMLESS, checked, read_fields

PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}


@pytest.mark.parametrize(
    "field, value",
    {
        "lora_dropout": 0.1, "init_lora_weights": "gaussian", "target_modules": "all-linear",
        "layers_to_transform": [0], "layers_pattern": "layers", "exclude_modules": ["k"],
        "fan_in_fan_out": True, "task_type": "CAUSAL_LM", "modules_to_save": ["classifier"],
        "inference_mode": True, "revision": "main", "qalora_group_size": 32, "bias": None,
        "eva_config": {"rho": 2.0}, "peft_version": "0.21.2", "use_dora": False,
        "trainable_token_indices": None, "loftq_config": {}, "rank_pattern": None,
        "target_parameters": [],  # as PEFT saves what it adapted in a mixture of experts
    }.items(),
)  # fmt: skip
def test_harmless_fields_pass(field, value):
    assert checked({**PLAIN, field: value}, "here").scaling("q") == 2


@pytest.mark.parametrize(
    "field, value",
    {
        "use_dora": True, "use_qalora": True, "lora_bias": True, "bias": "all",
        "alora_invocation_tokens": [1, 2], "trainable_token_indices": {"embed_tokens": [0]},
        "target_parameters": ["experts.gate_up_proj"], "layer_replication": [[0, 2], [1, 3]],
        "megatron_config": {"tp": 2}, "use_bdlora": {"nblocks": 2}, "kasa_config": {"beta": 1.0},
        "velora_config": {"scale": 1.0}, "arrow_config": {"top_k": 2}, "enable_lora": [True, False],
        "monteclora_config": {}, "from_a_later_release": 1,
        "from_a_still_later_one": 0.0,
    }.items(),
)  # fmt: skip
def test_a_field_that_is_not_known_to_be_harmless_is_refused(field, value):
    value = {"x": 1} if value == {} else value
    with pytest.raises(ValueError, match=f"^here: {field}=.*merge_and_unload") as caught:
        checked({**PLAIN, field: value}, "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_a_moved_base_is_refused_with_pefts_conversion(start):
    with pytest.raises(ValueError, match="path_initial_model_for_weight_conversion"):
        checked({**PLAIN, "init_lora_weights": start}, "here")


def test_every_field_of_the_installed_peft_passes_at_its_default():
    """And whoever raises the bound on PEFT sees what is new."""
    default = {**dataclasses.asdict(LoraConfig()), "peft_type": "LORA"}
    assert checked(default, "here") == checked({"peft_type": "LORA"}, "here")
    assert HARMLESS <= default.keys()
    for field in default.keys() - HARMLESS:
        with pytest.raises(ValueError, match=field):
            checked({**default, field: ["on"]}, "here")


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"r": 0}, "r=0 is no rank"), ({"r": True}, "r=True"), ({"r": 4.0}, "r=4.0"),
        ({"r": "4"}, "r=4 is no rank"), ({"r": None}, "r=None"),
        ({"lora_alpha": None}, "lora_alpha=None"), ({"lora_alpha": float("nan")}, "=nan"),
        ({"lora_alpha": 10**400}, "is no scaling"), ({"lora_alpha": [8]}, "is no scaling"),
        ({"use_rslora": "yes"}, "use_rslora=yes"), ({"peft_type": "IA3"}, "is a IA3 adapter"),
        ({"peft_type": ["LORA"]}, "only LORA"), ({"rank_pattern": [4]}, "rank_pattern is a list"),
        ({"rank_pattern": {"q": 0}}, "rank_pattern, q=0"), ({"alpha_pattern": {"q": "x"}}, "q=x"),
        ({"rank_pattern": {"(q": 4}}, "which is no pattern"), ({"init_lora_weights": 3}, "=3"),
        ({"init_lora_weights": "PiSSA"}, "moves the base"), ({"alpha_pattern": 7}, "is a int"),
        ({"rank_pattern": []}, "is a list"), ({"modules_to_save": [1]}, "no list of names"),
        ({"modules_to_save": 1}, "no list of names"),
        ({"modules_to_save": ["score", "embed_tokens"]}, "holds embed_tokens, which is no task's"),
        ({"modules_to_save": ["lm_head"]}, "holds lm_head, which is no task's head"),
    ],
)  # fmt: skip
def test_a_value_that_is_none_is_said_with_the_path(fields, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        checked({**PLAIN, **fields}, "here")
    assert str(caught.value).startswith("here") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+", "(.*)*", "([a-z.]+)*x", "(a|a)*b", "(?=(a+))a*b", "(?i:a)", r"(\w+\.)+q", "(.{9}){9}",
     ".*.*.*.*x", "a?" * 30 + "a" * 30, "(a|a)(a|a)(a|a)(a|a)(a|a)", "(aa|" * 300 + ")" * 300,
     r"[\](a+)+[x]"],
)  # fmt: skip
def test_a_pattern_that_may_search_for_ever_is_refused_at_once(pattern):
    start = time.monotonic()
    with pytest.raises(ValueError, match="search for ever"):
        checked({**PLAIN, "rank_pattern": {pattern: 2}}, "here")
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    "pattern",
    ["q", "layer.1.q", r"^model\.layers\.0\.q", r".*\.layers\.(\d+)\.(q|k)", r"layers\.[0-9]+\.q",
     r"(?:self_attn|mlp)\.q", "a" * 500],
)  # fmt: skip
def test_patterns_match_as_in_peft(pattern):
    fields = checked({**PLAIN, "rank_pattern": {pattern: 2}}, "here")
    names = ["q", "layer.1.q", "layer.11.q", "model.layers.0.q", "x.model.layers.0.q", "mlp.q", "v"]
    ranks = [fields.rank(name) for name in names]
    assert ranks == [{pattern: 2}.get(get_pattern_key([pattern], name), 4) for name in names]
    assert len(set(ranks)) == (1 if pattern == "a" * 500 else 2)


def test_absent_fields_stand_at_pefts_defaults(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    fields, default = read_fields(tmp_path), LoraConfig()
    assert fields.rank("q") == default.r and fields.scaling("q") == default.lora_alpha / default.r
    rslora = checked({**PLAIN, "use_rslora": True, "alpha_pattern": {"q": 6}}, "here")
    assert (rslora.scaling("q"), rslora.scaling("v")) == (3, 4)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "7", "[" * 100_000, '{"r": ' + "9" * 5000 + "}", "\udcff"]
)
def test_a_file_that_is_no_config_is_one_sentence(tmp_path, text):
    file = tmp_path / "adapter_config.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"adapter_config\.json") as caught:
        read_fields(tmp_path)
    assert "\n" not in str(caught.value)
