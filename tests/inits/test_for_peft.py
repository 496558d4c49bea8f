import json

import pytest
import tiny_models
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import FAMILIES, attention, batch

from osrm_exp import statistics
from osrm_exp.inits.for_peft import (
    collect_grams,
    get_osrm_state_dict,
    initialize_lora_osrm_weights,
    osrm_state_dict,
)

RANK = 3
ADAPTED = ["query", "value", "q", "v", "q_proj", "v_proj"]


def peft_model(family, **config):
    base = tiny_models.model(family)
    modules = [name for name in attention(base) if name.rpartition(".")[2] in ADAPTED]
    config = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": modules, **config}
    return get_peft_model(base, LoraConfig(task_type="SEQ_CLS", **config))


def loaders():
    """Three tasks with more tokens than the models are wide."""
    return {
        task: [batch([7, 4, 5, 2], 8, seed), batch([6, 8, 3], 9, seed + 10)]
        for seed, task in enumerate(("rte", "mnli", "qqp"))
    }


def osrm(model, exclude="rte", **changes):
    options = {"level": "token", "tie_break": "random", "seed": 0, "show_progress_bar": False}
    data = changes.pop("data", None) or loaders()
    return get_osrm_state_dict(model, data, exclude=exclude, **(options | changes))


def collect(model, **changes):
    return collect_grams(
        model, loaders(), **{"level": "token", "show_progress_bar": False} | changes
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_the_papers_for_every_module(family):
    model = peft_model(family)
    state = osrm(model)
    base = tiny_models.model(family)
    assert state.keys() == {n for n in attention(base) if n.rpartition(".")[2] in ADAPTED}
    grams = [
        statistics.gram(base, loader, list(state), level="token", include_padding=False)
        for task, loader in loaders().items()
        if task != "rte"
    ]
    for name, A in state.items():
        G = (grams[0][name] + grams[1][name]) / 2
        torch.testing.assert_close(A @ A.T, torch.eye(RANK), atol=1e-5, rtol=0)
        least = torch.linalg.eigvalsh(G)[:RANK].sum().item()
        assert torch.trace(A.double() @ G @ A.double().T).item() == pytest.approx(least, rel=1e-3)
    for name in state:  # q and v read the same tensor, cross-attention's do not
        other = next(
            n for n in state if n != name and n.rpartition(".")[0] == name.rpartition(".")[0]
        )
        assert torch.equal(state[name], state[other]) == ("EncDecAttention" not in name)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_else_changes_and_the_output_does_not(family):
    model, data = peft_model(family), batch([7, 4, 5], 7)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = osrm(model)
    with torch.no_grad():
        expected = model.eval()(**data).logits
        initialize_lora_osrm_weights(model, state)
        torch.testing.assert_close(model(**data).logits, expected, rtol=0, atol=0)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == ("lora_A" not in key)


def test_the_saved_adapter_is_a_plain_lora(tmp_path):
    model = peft_model("roberta")
    state = osrm(model)
    initialize_lora_osrm_weights(model, state)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["init_lora_weights"] is True
    again = PeftModel.from_pretrained(tiny_models.model("roberta"), tmp_path).get_base_model()
    for name, A in state.items():
        assert torch.equal(again.get_submodule(name).lora_A["default"].weight, A)


def test_ranks_of_modules_and_other_adapters_are_honoured():
    model = peft_model("llama", rank_pattern={"layers.1.self_attn.q_proj": 5})
    model.add_adapter("second", LoraConfig(r=2, target_modules=["v_proj"]))
    state = osrm(model)
    ranks = {name.removeprefix("model.layers."): len(A) for name, A in state.items()}
    assert ranks == {
        "0.self_attn.q_proj": 3, "0.self_attn.v_proj": 3,
        "1.self_attn.q_proj": 5, "1.self_attn.v_proj": 3,
    }  # fmt: skip
    initialize_lora_osrm_weights(model, state)
    second = osrm(model, adapter_name="second")
    assert {A.shape for A in second.values()} == {(2, 16)} and len(second) == 2
    initialize_lora_osrm_weights(model, second, adapter_name="second")
    layer = model.get_base_model().get_submodule("model.layers.1.self_attn.v_proj")
    assert torch.equal(layer.lora_A["second"].weight, second["model.layers.1.self_attn.v_proj"])
    assert torch.equal(layer.lora_A["default"].weight, state["model.layers.1.self_attn.v_proj"])


def test_grams_that_were_collected_once_serve_every_task():
    model = peft_model("roberta")
    grams = collect(model)
    for task in grams:
        state = osrm_state_dict(model, grams, exclude=task, tie_break="random", seed=0)
        direct = osrm(model, exclude=task)
        only_others = {k: v for k, v in loaders().items() if k != task}
        without = osrm(model, exclude=None, data=only_others)
        for name in state:
            assert torch.equal(state[name], direct[name])
            assert torch.equal(state[name], without[name])


@pytest.mark.filterwarnings("ignore:OSRM's minimum")
def test_own_energy_looks_at_the_excluded_task():
    model = peft_model("roberta")
    data = loaders() | {"mnli": [batch([3], 3)], "qqp": [batch([4], 4)]}  # 7 rows in 16 dimensions
    grams = collect_grams(model, data, level="token", show_progress_bar=False)
    loud = osrm(model, data=data, tie_break="own_energy")
    quiet = osrm(model, data=data, tie_break="random", seed=3)
    for name in loud:
        own = grams["rte"][name].float()
        assert torch.trace(loud[name] @ own @ loud[name].T) > torch.trace(
            quiet[name] @ own @ quiet[name].T
        )
    with pytest.raises(ValueError, match="needs the statistic `own`"):
        osrm(model, exclude=None, tie_break="own_energy")


def test_data_pass_through_the_base_model_alone_and_leave_no_trace():
    model = peft_model("roberta", lora_dropout=0.5)
    trained = peft_model("roberta", init_lora_weights=False, lora_dropout=0.5)
    clean, dirty = collect(model), collect(trained.train())
    for task in clean:
        for name in clean[task]:
            assert torch.equal(clean[task][name], dirty[task][name])
    assert trained.training and not model.eval().training
    assert not any(module._forward_pre_hooks for module in trained.modules())


def test_what_loaders_yield_may_be_prepared():
    model = peft_model("roberta")
    plain = collect(model)
    data = {t: [list(b.values()) for b in batches] for t, batches in loaders().items()}
    prepared = collect_grams(
        model,
        data,
        level="token",
        show_progress_bar=False,
        prepare_model_inputs_fn=lambda b: {"input_ids": b[0], "attention_mask": b[1]},
    )
    for name in plain["rte"]:
        assert torch.equal(plain["rte"][name], prepared["rte"][name])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapter_learns_under_gradient_checkpointing(family):
    """Reentrant checkpointing over frozen embeddings trains nothing; ours must not be it."""
    model = peft_model(family)
    initialize_lora_osrm_weights(model, osrm(model))
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(**batch([7, 4, 5], 7)).loss.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            assert parameter.abs().max() > 0, name


def test_errors_come_before_any_change():
    model = peft_model("roberta")
    state = osrm(model)
    first = next(iter(state))
    with pytest.raises(ValueError, match="is no PeftModel"):
        osrm(tiny_models.model("roberta"))
    with pytest.raises(ValueError, match="has the adapter 'third'; the model has: default"):
        osrm(model, adapter_name="third")
    with pytest.raises(ValueError, match="exclude='cola' is no task; there are: rte, mnli, qqp"):
        osrm(model, exclude="cola")
    with pytest.raises(ValueError, match="at least one other task"):
        osrm(model, data={"rte": loaders()["rte"]}, exclude="rte")
    with pytest.raises(ValueError, match=r"\(1 modules\) is not in the state dict"):
        initialize_lora_osrm_weights(model, {k: v for k, v in state.items() if k != first})
    with pytest.raises(ValueError, match=r"more.*is not in the adapter"):
        initialize_lora_osrm_weights(model, {"more": state[first], **state})
    before = model.get_base_model().get_submodule(first).lora_A["default"].weight.clone()
    last = list(state)[-1]
    with pytest.raises(ValueError, match=r"A is \[2, 16\] but the adapter's is \[3, 16\]"):
        initialize_lora_osrm_weights(model, state | {last: state[last][:2]})
    layer = model.get_base_model().get_submodule(first)
    assert torch.equal(layer.lora_A["default"].weight, before)
    torch.nn.init.ones_(layer.lora_B["default"].weight)
    with pytest.raises(ValueError, match="B is not zero"):
        initialize_lora_osrm_weights(model, state)


def test_the_seed_moves_only_arbitrary_choices(recwarn):
    model = peft_model("roberta")
    one, other = osrm(model, seed=0), osrm(model, seed=1)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any("not unique" in str(warning.message) for warning in recwarn.list)
    few = {task: batches[:1] for task, batches in loaders().items()}  # 8 samples, 16 dimensions
    one, other = (osrm(model, seed=s, level="sample", data=few) for s in (0, 1))
    assert not any(torch.equal(one[name], other[name]) for name in one)
    assert any("not unique" in str(warning.message) for warning in recwarn.list)
