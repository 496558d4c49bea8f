"""The two expensive stages, as frozen specifications: a task's statistic, a fine-tuned adapter."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from osrm_exp.adapter import read_adapter, write_adapter
from osrm_exp.inits import row_norm
from osrm_exp.lora import LowRank, stack
from osrm_exp.model import (
    adapted_modules,
    applied,
    load_backbone,
    load_tokenizer,
    new_heads,
)
from osrm_exp.spec import Init, Model, Spec, Task, Tuning
from osrm_exp.store import Store
from osrm_exp.tasks import data
from osrm_exp.training.callbacks import InitializeLora
from osrm_exp.training.module import LoraFineTuning

log = logging.getLogger("osrm_exp")


@dataclass
class Workshop:
    """Where artifacts are built and cells are scored; nothing here changes what comes out.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """

    store: Store
    accelerator: str = "cpu"
    logger: Any = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ValueError("trainer=gpu, but torch sees no GPU here: trainer=cpu runs without")

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.accelerator == "gpu" else "cpu")


class Statistic(Spec):
    """Per-module tensors from one task's training rows, run through the base model or its expert.

    `how` is a `_target_` of `osrm_exp.statistics` with its options.
    """

    model: Model
    task: Task
    blocks: tuple[str, ...]
    precision: str
    max_length: int
    truncation_side: str
    how: dict[str, Any]
    samples: int
    expert: FineTune | None
    version: int = 1

    @property
    def label(self) -> str:
        kind = self.how["_target_"].rpartition(".")[2]
        return f"{kind}-{self.task.name}" + ("-expert" if self.expert else "")

    def build(self, folder: Path, workshop: Workshop) -> None:
        """Collects in one pass; modules that share a tensor share it on disk."""
        rows = _data(self.model, self.task, self.max_length, self.truncation_side)
        pad_to = self.max_length if self.how.get("include_padding") else None  # as the release pads
        batches = rows.batches("train", 16, self.samples, pad_to)
        torch.manual_seed(0)  # the head of the base model is new; no gram sees it
        net = load_backbone(self.model, self.task.outputs, precision=self.precision).eval()
        net = net.to(workshop.device)
        batches = [{k: v.to(net.device) for k, v in batch.items()} for batch in batches]
        modules = list(adapted_modules(net, self.model, self.blocks))
        with ExitStack() as contexts:
            if self.expert:
                adapter = read_adapter(workshop.store.folder(self.expert))
                heads = new_heads(self.model, self.task.outputs, adapter.heads)
                contexts.enter_context(applied(net, adapter.updates, heads))
            found = instantiate(self.how, _partial_=True)(
                net, tqdm(batches, desc=self.label, leave=False, delay=1), modules
            )
        for name, tensor in found.items():
            if not tensor.isfinite().all():
                raise ValueError(f"the {self.label} of {name} is not finite")
        owner = {name: next(o for o in found if found[o] is found[name]) for name in found}
        tensors = {name: found[name].cpu().contiguous() for name in set(owner.values())}
        save_file(tensors, folder / "statistic.safetensors")
        (folder / "shared.json").write_text(json.dumps(owner, indent=2))


def read_statistic(folder: Path) -> LazyTensors:
    """A statistic by module, read from disk tensor by tensor as it is asked for."""
    owner = json.loads((folder / "shared.json").read_text())
    return LazyTensors(folder / "statistic.safetensors", owner)


class FineTune(Spec):
    """One task's LoRA adapter and head, trained from one initialisation.

    With `intermediate` it continues from that task's adapter in place of the initialisation:
    factors, and head tensors where the shapes agree.  Phang et al. 2018, arXiv 1811.01088; for
    LoRA on GLUE: Hu et al. 2022, arXiv 2106.09685, appendix D.1.
    """

    model: Model
    task: Task
    tuning: Tuning
    init: dict[str, Any]
    own: dict[str, Statistic]
    others: dict[str, tuple[Statistic, ...]]
    select: str
    seed: int
    intermediate: FineTune | None = Field(default=None, exclude_if=lambda found: found is None)
    version: int = 2

    @property
    def label(self) -> str:
        return f"{self.task.name}-s{self.seed}"

    def build(self, folder: Path, workshop: Workshop) -> None:
        """Trains, restores the best epoch and saves a plain PEFT adapter.

        Beside it lie `training.json` and `start.safetensors`, every module's initial `A`.
        """
        with quiet():
            self._build(folder, workshop)

    def _build(self, folder: Path, workshop: Workshop) -> None:
        before = self.intermediate and workshop.store.get(self.intermediate, workshop)
        pl.seed_everything(self.seed, verbose=False)
        net = self._network()
        module = LoraFineTuning(net, self.task, self.tuning)
        taken = _taken_from_base(module)
        if before:
            _continue(net, before)
        starts = self._starts(module, workshop)
        initialize = InitializeLora(starts, self.init["freeze"])
        save_file(starts, folder / "start.safetensors")
        history = self._fit(module, initialize, folder, workshop)
        net.peft_config["default"].base_model_name_or_path = self.model.name
        net.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
        if taken:
            adapter = read_adapter(folder)
            updates = {n: _minus(u, taken[n]) for n, u in adapter.updates.items()}
            write_adapter(folder, updates, adapter.heads, task_type="SEQ_CLS",
                          modules_to_save=list(self.model.heads),
                          base_model_name_or_path=self.model.name)  # fmt: skip
        read_adapter(folder)  # what cannot be read back, or is not finite, is not kept
        (folder / "training.json").write_text(json.dumps(history, indent=2))

    def _network(self) -> PeftModel:
        """The backbone with a new head and LoRA as PEFT starts it, drawn from torch's seed."""
        tuning, lora = self.tuning, self.tuning.lora
        net = load_backbone(
            self.model, self.task.outputs, precision=tuning.precision, dropout=tuning.dropout
        )
        names = list(adapted_modules(net, self.model, lora.blocks, lora.r))
        if tuning.gradient_checkpointing:
            # the reentrant form gives LoRA under frozen embeddings a gradient of exactly zero
            net.gradient_checkpointing_enable({"use_reentrant": False})
        config = LoraConfig(
            task_type="SEQ_CLS", target_modules=names, modules_to_save=list(self.model.heads),
            init_lora_weights=self.init["peft"], **lora.model_dump(exclude={"blocks"}),
        )  # fmt: skip
        if "corda" in self.init:
            self._prepare_corda(net, config)
        return get_peft_model(net, config)

    def _prepare_corda(self, net: PreTrainedModel, config: LoraConfig) -> None:
        """Lets PEFT see the own task's inputs, row by row: its hook takes no batch, no padding."""
        rows = _data(self.model, self.task, self.tuning.max_length, self.tuning.truncation_side)
        batches = rows.batches("train", 1, self.init["corda"]["samples"])
        config.corda_config = CordaConfig(corda_method=self.init["corda"]["method"])
        inputs = [{k: v for k, v in batch.items() if k != "labels"} for batch in batches]
        preprocess_corda(net, config, lambda: [net(**row) for row in inputs])

    def _starts(self, module: LoraFineTuning, workshop: Workshop) -> dict[str, Tensor]:
        """`{module: A [rank, in]}`; as they are where the init is PEFT's or the task continues."""
        layers = module.lora_layers()
        if self.init.get("_target_") is None or self.intermediate:
            return {
                n: layer.lora_A["default"].weight.detach().clone() for n, layer in layers.items()
            }
        init = instantiate(Init.options(self.init), _partial_=True)
        own = {k: read_statistic(workshop.store.folder(s)) for k, s in self.own.items()}
        others = {
            k: [read_statistic(workshop.store.folder(s)) for s in statistics]
            for k, statistics in self.others.items()
        }
        found, starts = {}, {}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for name, layer in layers.items():
                inputs = tuple(s.owner[name] for s in (*own.values(), *chain(*others.values())))
                key = inputs or (name,)  # q and v have the same inputs, so one A serves both
                if key not in found:
                    tensors = {k: s[name] for k, s in own.items()}
                    tensors |= {k: torch.stack([s[name] for s in of]) for k, of in others.items()}
                    who = "" if self.init.get("shared") else self.task.name
                    generator = torch.Generator().manual_seed(_seed(self.seed, who, key[0]))
                    A = init(layer.in_features, self.tuning.lora.r, generator=generator, **tensors)
                    found[key] = row_norm(A, self.init["row_norm"])
                starts[name] = found[key].clone()
        if caught:
            log.warning("%s, %d of %d inputs: %s", self.task.name, len(caught), len(found),
                        caught[-1].message)  # fmt: skip
        return starts

    def _fit(self, module, initialize, folder: Path, workshop: Workshop) -> dict[str, Any]:
        best = ModelCheckpoint(
            folder / "best", "best", monitor="headline", mode="max", save_weights_only=True
        )
        shown = {"enable_model_summary": False, "enable_progress_bar": workshop.progress}
        trainer = pl.Trainer(
            accelerator=workshop.accelerator, devices=1, **shown, max_epochs=self.tuning.epochs,
            gradient_clip_val=self.tuning.clip, logger=workshop.logger or False,
            callbacks=[initialize, best], num_sanity_val_steps=0, log_every_n_steps=10,
        )  # fmt: skip
        loader = data.TaskDataModule(
            _data(self.model, self.task, self.tuning.max_length, self.tuning.truncation_side),
            batch_size=self.tuning.batch_size, select=self.select, seed=self.seed,
        )  # fmt: skip
        try:
            trainer.fit(module, loader)
        except SystemExit:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from None
        if trainer.interrupted:
            raise KeyboardInterrupt
        kept = torch.load(best.best_model_path, weights_only=True)
        missing = module.load_state_dict(kept["state_dict"], strict=False).unexpected_keys
        if missing:
            raise RuntimeError(f"the best checkpoint holds unknown tensors: {missing}")
        Path(best.best_model_path).unlink()
        Path(best.dirpath).rmdir()
        score = float(best.best_model_score)
        return {"headline": score, "epoch": kept["epoch"], "select": self.select}


def _continue(net: PeftModel, folder: Path) -> None:
    """Puts an adapter's factors into the network, and its head tensors where they fit."""
    new = get_peft_model_state_dict(net, save_embedding_layers=False)
    found = load_file(folder / "adapter_model.safetensors")
    set_peft_model_state_dict(
        net, {k: t if t.shape == new[k].shape else new[k] for k, t in found.items()}
    )


def _taken_from_base(module: LoraFineTuning) -> dict[str, LowRank]:
    """What an initialisation of PEFT's (pissa, olora) moved from the base weights into the factors.

    The network then computes `W - s B0 A0 + s B A`, so the delta against the original weight is
    `s (B A - B0 A0)`, of twice the rank. Empty where `B A` starts at zero.
    """
    found = {}
    for name, layer in module.lora_layers().items():
        A, B = (f["default"].weight.detach().clone() for f in (layer.lora_A, layer.lora_B))
        if (B @ A).norm() > 1e-4 * B.norm() * A.norm():
            found[name] = LowRank(A.float(), B.float() * layer.scaling["default"])
    return found


def _minus(update: LowRank, start: LowRank) -> LowRank:
    return stack([update, start * -1]).total()


def read_start(folder: Path) -> dict[str, Tensor]:
    """A fine-tune's initial `A [rank, in]`, by module."""
    return load_file(folder / "start.safetensors")


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning and transformers without their advice on cloud loggers and worker counts."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for module in ("lightning", "transformers", "peft"):
                warnings.filterwarnings("ignore", module=module)
            yield
    finally:
        log.setLevel(level)


class LazyTensors(Mapping):
    def __init__(self, file: Path, owner: dict[str, str]) -> None:
        self.file, self.owner = file, owner

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.file, framework="pt") as tensors:
            return tensors.get_tensor(self.owner[name])

    def __iter__(self):
        return iter(self.owner)

    def __len__(self) -> int:
        return len(self.owner)


def _data(model: Model, task: Task, max_length: int, truncation_side: str) -> data.TaskData:
    return data.load(task, load_tokenizer(model, truncation_side), max_length)


def _seed(seed: int, *names: str) -> int:
    digest = hashlib.sha256("/".join((str(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:7], "big")


Statistic.model_rebuild()
