"""A fine-tuned adapter: trained from its start, kept at its best epoch, saved as PEFT saves it."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from safetensors.torch import load_file, save_file
from torch import Tensor

from osrm_exp.adapter import read_adapter, write_adapter
from osrm_exp.artifacts.peft_factors import minus
from osrm_exp.artifacts.start import Start, begin, network, rows_of
from osrm_exp.artifacts.workshop import Workshop
from osrm_exp.identity import check_unchanged
from osrm_exp.spec import FineTune
from osrm_exp.store import resume
from osrm_exp.tasks import data
from osrm_exp.training import ranks
from osrm_exp.training.callbacks import InitializeLora
from osrm_exp.training.history import History
from osrm_exp.training.module import LoraFineTuning
from osrm_exp.training.quiet import quiet


def build(spec: FineTune, folder: Path, workshop: Workshop) -> None:
    """Trains, restores the best epoch and saves a plain PEFT adapter.

    Beside it lie `training.json` and `start.safetensors`, every module's initial `A`. A logger that
    waits for the curve is told it meanwhile.
    """
    if spec.intermediate:
        workshop.store.get(spec.intermediate, workshop)  # before anything is drawn
    if workshop.devices > 1:
        alone = replace(workshop, logger=None)  # the logger is told the curve afterwards
        ranks.run(workshop.devices, _build, spec, folder, alone)
    else:
        _build(spec, folder, workshop)
        workshop.untold.discard(spec.digest)
    check_unchanged(spec.model, spec.task)


def _build(spec: FineTune, folder: Path, workshop: Workshop) -> None:
    with quiet():
        pl.seed_everything(spec.seed, verbose=False)
        module = LoraFineTuning(network(spec), spec.task, spec.tuning)
        start = begin(spec, module.net, module.lora_layers(), workshop)
        initialize = InitializeLora(start.A, spec.init.freeze)
        trainer, history = _fit(spec, module, initialize, folder, workshop)
        if ranks.first():
            said = _restored(trainer, module, folder)
            save_file(start.A, folder / "start.safetensors")
            _save(spec, module, start, folder)
            said |= {"select": spec.select, "epochs": history.epochs, "curve": history.curve}
            (folder / "training.json").write_text(json.dumps(said, indent=2))


def read_start(folder: Path) -> dict[str, Tensor]:
    """A fine-tune's initial `A [rank, in]`, by module."""
    return load_file(folder / "start.safetensors")


def _fit(
    spec: FineTune, module: LoraFineTuning, initialize: pl.Callback, folder: Path,
    workshop: Workshop,
) -> tuple[pl.Trainer, History]:  # fmt: skip
    left = resume(folder)  # by an earlier attempt, from which this one goes on
    _drop_damaged(left)
    best = ModelCheckpoint(left, "best", monitor="headline", mode="max", save_weights_only=True)
    last = ModelCheckpoint(left, "last", save_on_train_epoch_end=True)
    history = History()
    trainer = pl.Trainer(
        accelerator=workshop.accelerator, devices=workshop.devices, max_epochs=spec.tuning.epochs,
        gradient_clip_val=spec.tuning.clip,
        logger=(spec.digest in workshop.untold and workshop.logger) or False,
        callbacks=[initialize, history, best, last], num_sanity_val_steps=0, log_every_n_steps=10,
        enable_model_summary=False, enable_progress_bar=workshop.progress,
        strategy="ddp" if workshop.devices > 1 else "auto", use_distributed_sampler=False,
        plugins=[LightningEnvironment()],  # under Slurm too: nothing requeues behind our back
    )  # fmt: skip
    loader = data.TaskDataModule(
        rows_of(spec), batch_size=spec.tuning.batch_size, select=spec.select, seed=spec.seed
    )
    try:
        goes_on = left / "last.ckpt"
        trainer.fit(
            module, loader, ckpt_path=goes_on if goes_on.is_file() else None, weights_only=True
        )
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    if trainer.interrupted:
        raise KeyboardInterrupt
    return trainer, history


def _drop_damaged(left: Path) -> None:
    """Empties a folder of checkpoints of which a full disk cut one short: the fine-tuning begins
    anew."""
    for file in left.glob("*.ckpt"):
        try:
            torch.load(file, weights_only=True, map_location="cpu")
        except Exception as error:  # of torch, of the zip format, of the unpickler
            reason = str(error).partition("\n")[0]
            logging.getLogger("osrm_exp").warning("%s is damaged (%s): begun anew", file, reason)
            shutil.rmtree(left, ignore_errors=True)
            left.mkdir(exist_ok=True)
            return


def _restored(trainer: pl.Trainer, module: LoraFineTuning, folder: Path) -> dict[str, Any]:
    """Puts the best epoch into the module; which it is, and its score."""
    best: Any = trainer.checkpoint_callbacks[0]
    kept = torch.load(best.best_model_path, weights_only=True)
    if unknown := module.load_state_dict(kept["state_dict"], strict=False).unexpected_keys:
        raise RuntimeError(f"the best checkpoint holds unknown tensors: {unknown}")
    shutil.rmtree(resume(folder))
    score = float(best.state_dict()["best_model_score"])
    return {"headline": score, "epoch": kept["epoch"]}


def _save(spec: FineTune, module: LoraFineTuning, start: Start, folder: Path) -> None:
    net = module.net
    config: Any = net.peft_config["default"]
    config.base_model_name_or_path = spec.model.name
    config.init_lora_weights, config.corda_config = True, None  # how it began is no part of it
    net.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    if start.moved:
        adapter = read_adapter(folder)
        updates = {n: minus(u, start.moved[n]) for n, u in adapter.updates.items()}
        write_adapter(folder, updates, adapter.heads, task_type=spec.task.kind.task_type,
                      modules_to_save=list(spec.model.heads) or None,
                      base_model_name_or_path=spec.model.name)  # fmt: skip
    read_adapter(folder)  # what cannot be read back, or is not finite, is not kept
