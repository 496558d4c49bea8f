"""What a search has done so far, appended entry by entry: a kill loses the one that it cut off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class History:
    """JSON lines in a folder that outlives an interrupted build; `entries` are those before."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "history.jsonl"
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
        scratch = self.file.with_suffix(".tmp")
        scratch.write_bytes(b"".join(map(_line, self.entries)))
        scratch.rename(self.file)


def _line(entry: Entry) -> bytes:
    return (json.dumps(entry, allow_nan=False) + "\n").encode()
