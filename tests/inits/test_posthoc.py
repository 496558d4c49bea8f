import json

import pytest
import tiny_models
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import batch

from osrm_exp import inits
from osrm_exp.adapter import read_adapter, write_adapter
from osrm_exp.inits.posthoc import project, project_adapter
from osrm_exp.lora import LowRank

OUT, IN, RANK = 6, 40, 4


def rows(seed):
    return inits.orthonormal(IN, RANK, generator=torch.Generator().manual_seed(seed)).double()


def update(A, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return LowRank(A, torch.randn(OUT, RANK, generator=generator, dtype=torch.float64))


def test_an_update_in_the_given_rows_comes_back_exactly_once():
    A = rows(0)
    exact, kept = project(update(A), A)
    torch.testing.assert_close(exact.delta, update(A).delta)
    assert kept == pytest.approx(1) and torch.equal(exact.A, A)


def test_the_projection_is_the_nearest_update_with_those_rows():
    delta, A = update(rows(0)).delta, 3 * rows(1) + rows(2)  # rows that are not orthonormal
    found, kept = project(update(rows(0)), A)
    B = torch.linalg.lstsq(A.T, delta.T).solution.T
    torch.testing.assert_close(found.delta, B @ A)
    assert kept == pytest.approx(((B @ A).norm() ** 2 / delta.norm() ** 2).item())


def test_unrelated_rows_keep_rank_over_width_and_drifted_ones_most():
    kept = [project(update(rows(s)), rows(100 + s))[1] for s in range(200)]
    assert sum(kept) / 200 == pytest.approx(RANK / IN, rel=0.1)
    A = rows(0)
    drifted = A + 0.02 * torch.randn(A.shape, generator=torch.Generator().manual_seed(0))
    assert 0.9 < project(update(drifted), A)[1] < 1


def test_a_zero_update_loses_nothing_and_dtypes_stay():
    nothing = LowRank(torch.randn(2, IN), torch.zeros(OUT, 2))
    found, kept = project(nothing, rows(0).float())
    assert kept == 1 and found.delta.abs().max() == 0 and found.B.dtype == torch.float32
    none = LowRank(torch.zeros(0, IN), torch.zeros(OUT, 0))
    assert project(none, rows(0).float())[1] == 1


@pytest.fixture
def saved(tmp_path):
    """A trained adapter on disk with a head, in the rows of known A, and its logits."""
    base = tiny_models.model("roberta")
    config = {"r": 3, "lora_alpha": 6, "target_modules": ["query", "value"]}
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", **config)).eval()
    generator = torch.Generator().manual_seed(0)
    start = {}
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            A = inits.orthonormal(16, 3, generator=generator)
            parameter.data.copy_(A)
            start[name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight")] = A
        elif "lora_B" in name or "modules_to_save" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "trained")
    return tmp_path, start, model


def logits(folder):
    model = PeftModel.from_pretrained(tiny_models.model("roberta"), folder).eval()
    with torch.no_grad():
        return model(**batch([7, 4, 5], 7)).logits


def test_an_osrm_adapter_on_disk_is_unchanged_head_included(saved):
    folder, start, model = saved
    kept = project_adapter(folder / "trained", folder / "post", start, faithful=False)
    assert kept.keys() == start.keys() and min(kept.values()) == pytest.approx(1)
    with torch.no_grad():
        expected = model(**batch([7, 4, 5], 7)).logits
    torch.testing.assert_close(logits(folder / "post"), expected, atol=1e-4, rtol=1e-4)


def test_faithful_to_the_release_the_delta_doubles_and_the_head_is_lost(saved):
    folder, start, _ = saved
    project_adapter(folder / "trained", folder / "post", start, faithful=True)
    before, after = read_adapter(folder / "trained"), read_adapter(folder / "post")
    for name, one in before.updates.items():
        torch.testing.assert_close(after.updates[name].delta, 2 * one.delta)
    assert before.heads and not after.heads


def test_every_adapted_module_needs_its_rows(saved):
    folder, start, _ = saved
    start.popitem()
    with pytest.raises(ValueError, match=r"no A for .*\(1 modules\)"):
        project_adapter(folder / "trained", folder / "post", start, faithful=False)


@pytest.mark.parametrize("config", [{"use_rslora": True}, {"lora_alpha": None, "r": None}])
def test_the_release_forgets_the_scaling_that_peft_applies(tmp_path, config):
    """An rsLoRA's, and that of a config that leaves `r` and `lora_alpha` at PEFT's defaults."""
    A, B = torch.eye(8, 9), torch.randn(5, 8)
    write_adapter(tmp_path / "in", {"q": LowRank(A, B)})
    file = tmp_path / "in" / "adapter_config.json"
    fields = {**json.loads(file.read_text()), "lora_alpha": 24, **config}
    file.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))
    scale = 24 / 8**0.5 if "use_rslora" in config else 1.0
    project_adapter(tmp_path / "in", tmp_path / "out", {"q": A}, faithful=True)
    delta = read_adapter(tmp_path / "out").updates["q"].delta
    torch.testing.assert_close(delta, scale**2 * (B @ A))
