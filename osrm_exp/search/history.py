"""What a search has done so far, appended entry by entry: a kill loses the one that it cut off."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from osrm_exp.report.sealed import in_place

Entry = dict[str, Any]


class History:
    """JSON lines in a folder that outlives an interrupted build; `entries` are those before."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "history.jsonl"
        self.state = folder / "state.safetensors"
        text = self.file.read_bytes() if self.file.is_file() else b""
        whole = text[: text.rfind(b"\n") + 1]  # what follows was cut off
        self.entries: list[Entry] = [json.loads(line) for line in whole.splitlines()]
        if whole != text:
            self.rewind(len(self.entries))

    def append(self, entry: Entry) -> None:
        """Out of the process at once."""
        with self.file.open("ab") as out:
            out.write(_line(entry))
        self.entries.append(entry)

    def rewind(self, count: int) -> None:
        """Keeps the first `count` entries: an optimiser goes on from a state that was saved."""
        del self.entries[count:]
        with in_place(self.file) as scratch:
            scratch.write_bytes(b"".join(map(_line, self.entries)))

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Keeps where an optimiser that moves tensors stands after the entries so far."""
        with in_place(self.state) as scratch:
            save_file({**state, "done": torch.tensor(len(self.entries))}, scratch)

    def restored(self) -> dict[str, Tensor]:
        """What was saved last, empty where nothing was; entries made after it are dropped."""
        state = load_file(self.state) if self.state.is_file() else {}
        self.rewind(int(state.pop("done", 0)))
        return state


def _line(entry: Entry) -> bytes:
    return (json.dumps(entry, allow_nan=False) + "\n").encode()
