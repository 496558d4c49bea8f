"""A cell's merged model as files that others load: a PEFT adapter or a checkpoint, with its card.

    python -m osrm_exp.export results/EXPERIMENT/rows/CELL.jsonl OUT [--rank 16] [--merged]
        [--task NAME] [paths.store=DIR model.path=DIR …]

The rows hold the overrides that compose their cell again, but for absolute paths, which say where
something lay on one machine; what follows OUT is added to them. The adapters are taken from the
store, the merge is repeated, and nothing is ever trained.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import save_file

from osrm_exp import needs, searchpath
from osrm_exp.adapter import Adapter, read_adapter, write_adapter
from osrm_exp.artifacts import Workshop
from osrm_exp.artifacts.searched import outcome
from osrm_exp.bench import Bench
from osrm_exp.compose import cell_from, configuration
from osrm_exp.export.card import card
from osrm_exp.export.network import fold
from osrm_exp.export.save import low_rank, whole
from osrm_exp.lora import Result
from osrm_exp.model import heads_of, load_backbone, load_tokenizer
from osrm_exp.overrides import KEPT_BACK, completed, public
from osrm_exp.report.rows import rows_in
from osrm_exp.spec import Cell, Task
from osrm_exp.store import Store

Row = Mapping[str, Any]


def export(
    cell: Cell, rows: Sequence[Row], out: Path | str, workshop: Workshop, *,
    rank: int | None, merged: bool, task: str | None,
) -> Path:  # fmt: skip
    """Writes a cell's merged model to `out`, whole or not at all.

    Every task's head lies in `heads/<task>.safetensors`, and a card in `README.md`. What writes its
    answers is whole as it is: nothing lies beside it but the card.

    Args:
        cell: what was run.
        rows: those of the cell; they hold the settings that a search chose.
        out: a folder that does not exist yet.
        workshop: at the store of the run.
        rank: truncates every module; a dense result needs it to become an adapter.
        merged: a checkpoint of base weights plus deltas in place of an adapter.
        task: whose head goes into the model itself, so that it needs no other file.

    Raises:
        ValueError: a result that does not fit the form asked for, an adapter that is not in the
            store, a task that is not in the cell or has no head, a folder that exists.
    """
    out, names = Path(out), [t.name for t in cell.tasks]
    _check_wishes(out, rank, task, cell)
    adapters = adapters_of(cell, workshop)
    headed = adapters[-len(names) :]  # another arm's, where the cell's deltas met its heads
    result = repeated(cell, rows, adapters, workshop)
    if rank is not None:
        result = Result(dict(result), rank)
    heads = dict(zip(names, zip(cell.tasks, headed)))
    with whole(out) as scratch:
        write = write_checkpoint if merged else write_lora
        write(scratch, result, cell, heads[task] if task else None)
        if cell.model.heads:
            (scratch / "heads").mkdir()
            for name, adapter in zip(names, headed):
                save_file(adapter.heads, scratch / "heads" / f"{name}.safetensors")
        error = None if rank is None else result.error  # known once the result is written
        said = card(cell, rows, rank=rank, error=error, merged=merged, task=task)
        (scratch / "README.md").write_text(said)
    return out


def _check_wishes(out: Path, rank: int | None, task: str | None, cell: Cell) -> None:
    names = [one.name for one in cell.tasks]
    if out.exists():
        raise ValueError(f"{out} exists already: name a folder that does not")
    if rank is not None and rank < 1:
        raise ValueError(f"--rank {rank}: a rank is 1 or more")
    if task is not None and task not in names:
        raise ValueError(f"--task {task} is not in this cell; it has: {', '.join(names)}")
    if task is not None and not cell.model.heads:
        raise ValueError(f"--task {task}: its answers are written, it has no head; leave it out")


def repeated(
    cell: Cell, rows: Sequence[Row], adapters: Sequence[Adapter], workshop: Workshop
) -> Result:
    """A cell's merge once more, at the settings that its rows name, or as its search found it.

    Raises:
        ValueError: a search that the store does not hold, or one whose result has more to it than
            updates.
    """
    bench = Bench(cell, adapters, workshop)
    wanted = needs.searched(cell)
    if wanted and cell.search.family:
        if not workshop.store.has(wanted):
            raise ValueError(
                f"{workshop.store.root} holds no search {wanted.label}-{wanted.digest}: give the "
                "store of the run with paths.store=DIR, or run the cell again"
            )
        folder = workshop.store.folder(wanted)
        result, beside = outcome(cell, bench, bench.statistics(), folder)
        if beside.stacked:
            raise ValueError(
                f"merge={cell.names['merge']} has other layers than the checkpoint, which no "
                "adapter holds: evaluate it as it is, or take a merge method that keeps them"
            )
        if beside.heads:
            raise ValueError(
                f"merge={cell.names['merge']} puts a module of its own before every task's head, "
                "which no adapter or checkpoint holds: evaluate it as it is, or take a merge "
                "method without one"
            )
        return result
    merge = cell.merge.with_(**rows[0]["settings"])
    return Result(merge(bench.updates, **bench.statistics()), cell.rank)


def adapters_of(cell: Cell, workshop: Workshop) -> list[Adapter]:
    """The adapters of a cell, from the store; behind them those that give the heads, if others do.

    Raises:
        ValueError: one of them is not there.
    """
    wanted = needs.fine_tunes(cell) + (needs.heads(cell) if cell.heads else [])
    for one in wanted:
        if not workshop.store.has(one):
            raise ValueError(
                f"{workshop.store.root} holds no adapter {one.label}-{one.digest}: "
                "give the store of the run with paths.store=DIR"
            )
    return [read_adapter(workshop.store.folder(one)) for one in wanted]


Head = tuple[Task, Adapter] | None  # of the task whose head goes into the model


def write_lora(folder: Path, merged: Result, cell: Cell, head: Head) -> None:
    """A PEFT adapter of balanced factors, `lora_alpha = r`; `rank_pattern` where ranks differ.

    Raises:
        ValueError: see `low_rank`.
    """
    model = cell.model
    config: dict[str, Any] = {"base_model_name_or_path": model.path, "revision": model.revision}
    if not model.heads:
        config["task_type"] = cell.tasks[0].kind.task_type
    if head:
        config |= {"task_type": head[0].kind.task_type, "modules_to_save": list(model.heads)}
    write_adapter(folder, low_rank(merged), head[1].heads if head else {}, **config)


def write_checkpoint(folder: Path, merged: Result, cell: Cell, head: Head) -> None:
    """Base weights plus deltas in float32, so that nothing is rounded away; with the tokenizer.

    Without a task there is no head in it: `from_pretrained` then draws a new one, where the
    architecture has one.
    """
    tuning = cell.tuning
    torch.manual_seed(0)  # of a head that is replaced, or not saved
    shown = head[0] if head else cell.tasks[0]
    net = load_backbone(
        cell.model, shown.outputs if head else 1, precision=tuning.precision, auto=shown.kind.auto
    ).float()
    fold(net, merged)
    heads = tuple(f"{path}." for path in heads_of(net, cell.model))
    state = net.state_dict()
    if head:
        task, adapter = head
        state |= adapter.heads
        if task.labels:
            net.config.id2label = dict(enumerate(task.labels))
            net.config.label2id = dict(zip(task.labels, range(len(task.labels))))
    elif heads:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(heads)}
    net.save_pretrained(folder, state_dict=state)
    load_tokenizer(cell.model, tuning.truncation_side).save_pretrained(folder)


def cell_of(file: Path, added: Sequence[str]) -> tuple[Cell, Sequence[Row], Workshop]:
    """The cell that wrote a file of rows, its rows, and a workshop at its store.

    Raises:
        ValueError: not a file of rows, or one whose cell the configs of today do not compose.
    """
    rows = rows_in(file)
    _name(rows[0].get("conf", []))
    config = configuration(completed(rows[0]["overrides"], added))
    cell, digest = cell_from(config), rows[0]["cell"]
    if cell.digest != digest:
        raise ValueError(
            f"{file} is of the cell {digest}; its overrides compose {cell.digest} today, because "
            "the configs, the data or the checkpoint have changed: run the cell again"
        )
    return cell, rows, Workshop(Store(config["paths"]["store"]), **config["trainer"])


def _name(folders: Sequence[str]) -> None:
    """Names the folders of configs that a row remembers."""
    more = set(folders) - set(map(public, searchpath.named()))
    if any(map(KEPT_BACK.search, more)):
        raise ValueError(
            "the cell has configs of its own, and rows keep no place of the machine that made "
            f"them: {searchpath.VARIABLE}=DIR names their folder"
        )
    searchpath.name(one for one in folders if one in more)


def main(arguments: Sequence[str]) -> None:
    """The command; what a user can mend is told in one sentence."""
    title = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser("python -m osrm_exp.export", description=title)
    parser.add_argument("rows", type=Path, help="results/EXPERIMENT/rows/CELL.jsonl")
    parser.add_argument("out", type=Path, help="a folder that does not exist yet")
    parser.add_argument("overrides", nargs="*", help="paths.store=DIR, model.path=DIR, …")
    parser.add_argument("--rank", type=int, help="truncate every module to this rank")
    parser.add_argument("--merged", action="store_true", help="a checkpoint, not an adapter")
    parser.add_argument("--task", help="the task whose head goes into the model")
    given = parser.parse_intermixed_args(arguments)
    try:
        cell, rows, workshop = cell_of(given.rows, given.overrides)
        print(export(
            cell, rows, given.out, workshop, rank=given.rank, merged=given.merged, task=given.task
        ))  # fmt: skip
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"osrm_exp: {' '.join(str(error).split())}")
