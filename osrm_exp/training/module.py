"""The one LightningModule: a task's LoRA adapter and head, fine-tuned."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from osrm_exp.spec import Task, Tuning
from osrm_exp.training.ranks import gathered


class LoraFineTuning(pl.LightningModule):
    """Trains a PEFT network's factors and head on one task; tells its scores once an epoch.

    AdamW with linear decay after a warm-up, as the released OSRM code trains. Metrics are named
    `<task>/…`, and the headline also `headline`, which the best checkpoint is chosen by; of a text
    that is written it is the likelihood, for which nothing has to be written. Loggers hear of them
    from `History`.
    """

    def __init__(self, net: PeftModel, task: Task, tuning: Tuning) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold what is trained, see `on_save_checkpoint`
        self.net, self.task, self.tuning = net, task, tuning
        self.outputs: list[tuple[Tensor, Tensor]] = []

    def lora_layers(self) -> dict[str, LoraLayer]:
        """LoRA layers by module name, without PEFT's wrapper prefix."""
        named = self.net.get_base_model().named_modules()
        return {name: layer for name, layer in named if isinstance(layer, LoraLayer)}

    def on_train_start(self) -> None:
        self.net.train()  # `from_pretrained` leaves eval mode on, and Lightning keeps what it finds

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        kind, weight = self.task.kind, batch.pop("weight", 1.0)
        loss = weight * kind.loss(*kind.forward(self.net, batch))
        if not torch.isfinite(loss):
            raise ValueError(
                f"{self.task.name}: the training loss is {loss.item()} at step {self.global_step} "
                f"with tuning.lr={self.tuning.lr}; a lower tuning.lr helps"
            )
        self.log(f"{self.task.name}/loss", loss, prog_bar=True, logger=False, sync_dist=True)
        return loss

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        kind, weight = self.task.kind, batch.pop("weight", 1.0)
        kept = kind.keep(*kind.forward(self.net, batch))
        if weight:
            self.outputs.append(kept)

    def on_validation_epoch_end(self) -> None:
        outputs, labels = (torch.cat(parts) for parts in zip(*gathered(self.outputs)))
        self.outputs.clear()
        values, headline = self.task.kind.watch(self.task, outputs, labels)
        named = {f"{self.task.name}/{name}": value for name, value in values.items()}
        self.log_dict(named, logger=False)
        self.log("headline", values[headline], prog_bar=True, logger=False)

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.net.parameters() if p.requires_grad]
        tuning = self.tuning
        optimizer = torch.optim.AdamW(trained, lr=tuning.lr, weight_decay=tuning.weight_decay)
        steps = self.trainer.estimated_stepping_batches
        schedule = get_linear_schedule_with_warmup(optimizer, int(tuning.warmup * steps), steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k in trained}
