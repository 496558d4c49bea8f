import lightning.pytorch as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model

from osrm_exp.model import load_backbone
from osrm_exp.tasks import data
from osrm_exp.training.callbacks import InitializeLora
from osrm_exp.training.module import LoraFineTuning
from osrm_exp.training.quiet import quiet

FAMILIES = ["bert", "roberta", "t5", "llama"]


class Watch(pl.Callback):
    """Copies every parameter before the first step, and looks at modes during it."""

    def on_train_start(self, trainer, module):
        self.before = {n: p.detach().clone() for n, p in module.named_parameters()}

    def on_train_batch_start(self, trainer, module, batch, index):
        self.training = all(m.training for m in module.net.modules())


def fit(chosen, initialize=None, **options):
    """One epoch on the cell's first task; returns what each parameter was and is."""
    pl.seed_everything(0, verbose=False)
    task, tuning = chosen.tasks[0], chosen.tuning
    net = load_backbone(chosen.model, task.outputs, precision=tuning.precision)
    if tuning.gradient_checkpointing:
        net.gradient_checkpointing_enable({"use_reentrant": False})
    names = [chosen.model.blocks[b] for b in tuning.lora.blocks]
    net = get_peft_model(net, LoraConfig(
        r=tuning.lora.r, target_modules=names, modules_to_save=list(chosen.model.heads),
        lora_dropout=0.0,
    ))  # fmt: skip
    module, watch = LoraFineTuning(net, task, tuning), Watch()
    rows = data.load(task, chosen.model, tuning.max_length)
    loader = data.TaskDataModule(rows, batch_size=16, select="tune", seed=0)
    with quiet():
        pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            callbacks=[watch, *([initialize] if initialize else [])],
        ).fit(module, loader)  # fmt: skip
    after = dict(module.named_parameters())
    return watch, {n: (watch.before[n], after[n].detach()) for n in after}


def moved(parameters, part):
    return {n: not torch.equal(a, b) for n, (a, b) in parameters.items() if part in n}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_factors_and_heads_move_and_the_base_stands_still(cell, family, checkpointing):
    chosen = cell(family, f"tuning.gradient_checkpointing={str(checkpointing).lower()}")
    watch, parameters = fit(chosen)
    assert watch.training
    assert all(moved(parameters, "lora_B").values()) and moved(parameters, "lora_B")
    assert all(moved(parameters, "lora_A").values())
    assert all(moved(parameters, "modules_to_save").values())
    base = [n for n in parameters if "lora_" not in n and "modules_to_save" not in n]
    assert not any(not torch.equal(*parameters[n]) for n in base)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bf16_base_trains_float32_factors_and_heads(cell, family):
    _, parameters = fit(cell(family, "tuning.precision=bf16"))
    for name, (_, after) in parameters.items():
        trained = "lora_" in name or "modules_to_save" in name
        head = any(
            f".{h}." in name for h in ("pooler", "classifier", "score", "classification_head")
        )
        assert after.dtype == (torch.float32 if trained or head else torch.bfloat16), name
    assert all(moved(parameters, "lora_B").values())


def test_an_initialisation_is_in_place_before_the_first_step(cell):
    chosen = cell("roberta")
    name = "roberta.encoder.layer.0.attention.self.query"
    A = torch.randn(4, 32)
    _, parameters = fit(chosen, InitializeLora({name: A}))
    key = next(n for n in parameters if name in n and "lora_A" in n)
    assert torch.equal(parameters[key][0], A) and not torch.equal(parameters[key][1], A)
    assert all((before == 0).all() for n, (before, _) in parameters.items() if "lora_B" in n)


@pytest.mark.parametrize("factor", ["A", "B"])
def test_a_frozen_factor_stays(cell, factor):
    _, parameters = fit(cell("roberta"), InitializeLora({}, freeze=factor))
    other = "B" if factor == "A" else "A"
    assert not any(moved(parameters, f"lora_{factor}").values())
    # with B frozen at zero the delta is zero and A gets no gradient: that is LoRA's algebra
    assert all(moved(parameters, f"lora_{other}").values()) == (other == "B")


@pytest.mark.parametrize(
    ("A", "sentence"),
    [({"nope": torch.ones(4, 32)}, "adapts no module"),
     ({"roberta.encoder.layer.0.attention.self.query": torch.ones(3, 32)}, r"A is \[3, 32\]")],
)  # fmt: skip
def test_an_initialisation_that_does_not_fit_is_refused(cell, A, sentence):
    with pytest.raises(ValueError, match=sentence):
        fit(cell("roberta"), InitializeLora(A))


def test_dropout_is_configurable(cell):
    for rate in (0.0, 0.3):
        net = load_backbone(cell("roberta").model, 2, precision="fp32", dropout=rate)
        rates = {m.p for m in net.modules() if isinstance(m, torch.nn.Dropout)}
        assert rates == {rate}
