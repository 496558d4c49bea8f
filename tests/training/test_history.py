import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, get_peft_model

from osrm_exp.artifacts.fine_tune import quiet
from osrm_exp.model import load_backbone
from osrm_exp.tasks import data
from osrm_exp.training.history import History
from osrm_exp.training.module import LoraFineTuning


class KilledError(Exception):
    pass


class Kill(pl.Callback):
    """Stops a fine-tuning in the middle of its second epoch."""

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.current_epoch == 1 and index == 1:
            raise KilledError


def fit(chosen, folder, *callbacks, resume=None):
    """Three epochs with dropout on the cell's first task."""
    pl.seed_everything(0, verbose=False)
    task = chosen.tasks[0]
    net = load_backbone(chosen.model, task.outputs, precision="fp32", dropout=0.1)
    net = get_peft_model(net, LoraConfig(
        r=4, target_modules=["query", "value"], lora_dropout=0.2,
        modules_to_save=list(chosen.model.heads),
    ))  # fmt: skip
    module, history = LoraFineTuning(net, task, chosen.tuning), History()
    rows = data.load(task, chosen.model, 32)
    last = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True)
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[history, last, *callbacks],
    )  # fmt: skip
    loader = data.TaskDataModule(rows, batch_size=16, select="tune", seed=0)
    with quiet():
        trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
    trained = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
    return trained, history


def test_a_killed_fine_tuning_goes_on_to_the_same_bits(cell, tmp_path):
    chosen = cell("roberta")
    whole, curve = fit(chosen, tmp_path / "whole")
    with pytest.raises(KilledError):
        fit(chosen, tmp_path / "killed", Kill())
    resumed, again = fit(chosen, tmp_path / "killed", resume=str(tmp_path / "killed" / "last.ckpt"))
    assert whole.keys() == resumed.keys() and len(whole) > 4
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    timeless = [[{k: v for k, v in e.items() if k != "seconds"} for e in h.epochs]
                for h in (curve, again)]  # fmt: skip
    assert timeless[0] == timeless[1] and len(timeless[0]) == 3


def test_the_curve_has_losses_metrics_rate_and_seconds(cell, tmp_path):
    _, history = fit(cell("roberta"), tmp_path)
    first = history.epochs[0]
    assert {"epoch", "cola/loss", "cola/mcc", "cola/accuracy", "headline", "lr", "seconds"} <= {
        *first
    }
    assert [one["epoch"] for one in history.epochs] == [0, 1, 2]
    assert history.epochs[-1]["lr"] < first["lr"]
