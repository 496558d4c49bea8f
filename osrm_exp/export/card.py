"""The model card of an export: what was merged, how, and how well it did."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from osrm_exp.model import load_tokenizer
from osrm_exp.spec import Cell


def card(
    cell: Cell, rows: Sequence[Mapping[str, Any]], *,
    rank: int | None, error: float | None, merged: bool, task: str | None,
) -> str:  # fmt: skip
    """Markdown with the front matter of a model hub.

    Args:
        cell: what was run.
        rows: its rows.
        rank: of a truncation that the export itself made, after the rows were measured.
        error: of that truncation, relative.
        merged: the export is a checkpoint, not an adapter.
        task: whose head is part of the model, null for none.
    """
    first, names = rows[0], [t.name for t in cell.tasks]
    base = cell.model.path
    front = {"library_name": "transformers" if merged else "peft", "tags": ["lora", "merge"]}
    if not Path(base).is_dir():
        front["base_model"] = base
    kind = "checkpoint" if merged else "LoRA adapter"
    head = f"The head of {task} is part of it" if task else "It has no head of its own"
    others = f"{head}; every task's own head lies in `heads/`."
    if not cell.model.heads:
        others = "It writes its answers, and is whole as it is."
    facts = _facts(cell, first, rank, error)
    parts = [
        "---\n" + "".join(f"{k}: {json.dumps(v)}\n" for k, v in front.items()) + "---",
        f"# {', '.join(names)} merged by {first['merge']}",
        f"One {kind} for {cell.model.name}, merged from {len(names)} LoRA adapters. {others}",
        _table({"": list(facts), " ": list(facts.values())}),
        "## Adapters",
        _table({"task": names, "adapter": first["adapters"]}),
        "## Scores",
        _scores(rows, rank, bool(cell.model.heads)),
        "## Use",
        f"```python\n{_use(cell, merged, task)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _facts(cell: Cell, row: Mapping[str, Any], rank: int | None, error: float | None) -> dict:
    settings = [f"{k}={json.dumps(v)}" for k, v in row["settings"].items() if k != "space"]
    facts = {
        "merge": row["merge"], "space": row["space"], "settings": ", ".join(settings) or "none",
        "tuned on": row["tuned_on"], "result": row["output"],
    }  # fmt: skip
    if row["truncation_error"] is not None:
        facts["truncated in the cell"] = f"rank {cell.rank}, relative error {_error(row)}"
    if rank is not None:
        facts["truncated here"] = f"rank {rank}, relative error {error:.2e}"
    lora = cell.tuning.lora
    return facts | {
        "adapters": f"init {row['init']}, LoRA r={lora.r} alpha={lora.lora_alpha:g} on "
        f"{', '.join(lora.blocks)}",
        **({"heads": f"of the adapters of init {row['heads']}"} if cell.heads else {}),
        "tuning": row["tuning"],
        "protocol": row["protocol"], "seed": row["seed"], "cell": row["cell"],
        "versions": ", ".join(f"{name} {v}" for name, v in row["versions"].items()),
        **({"not pinned to a commit": ", ".join(row["unpinned"])} if row.get("unpinned") else {}),
    }  # fmt: skip


def _error(row: Mapping[str, Any]) -> str:
    return f"{row['truncation_error']:.2e}"


def _scores(rows: Sequence[Mapping[str, Any]], rank: int | None, headed: bool) -> str:
    table = pd.DataFrame(map(_score, rows))
    said = f"{'Each task with its own head; the' if headed else 'The'} headline metric in bold."
    if any(row["degenerate"] for row in rows):
        said += " *: the model answers the same for every row (a correlation then counts as 0)."
    if rank is not None:
        said += " Measured before the truncation of this export."
    return f"{said}\n\n{_table(table)}"


def _score(row: Mapping[str, Any]) -> dict[str, str]:
    metric = f"**{row['metric']}**" if row["headline"] else row["metric"]
    value = f"{row['value']:.4f}{'*' if row['degenerate'] else ''}"
    return {"task": row["task"], "split": row["split"], "metric": metric, "value": value}


def _use(cell: Cell, merged: bool, task: str | None) -> str:
    """Python that loads the export from its folder, with a head."""
    shown = next((t for t in cell.tasks if t.name == task), cell.tasks[0])
    path = "." if merged else cell.model.path
    imports = [f"from transformers import {shown.kind.auto}"]
    new = ""
    if cell.model.heads:  # of another width
        new = f", num_labels={shown.outputs}, ignore_mismatched_sizes=True"
    if not merged:  # a checkpoint's config says it; a base model's may not
        new += f", pad_token_id={load_tokenizer(cell.model).pad_token_id}"
    lines = [f"net = {shown.kind.auto}.from_pretrained({path!r}{'' if merged and task else new})"]
    if cell.model.heads and not task:
        imports.insert(0, "from safetensors.torch import load_file")
        head = f'load_file("heads/{shown.name}.safetensors")'
        lines.append(f"net.load_state_dict({head}, strict=False)")
    if not merged:
        imports.insert(0, "from peft import PeftModel")
        lines.append('net = PeftModel.from_pretrained(net, ".").eval()')
    return "\n".join([*imports, "", *lines])


def _table(columns: Mapping[str, Sequence[Any]] | pd.DataFrame) -> str:
    return pd.DataFrame(columns).to_markdown(index=False, disable_numparse=True)
