"""What a search found, kept in the store like any other product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from osrm_exp.record import Record
from osrm_exp.spec.cell import Cell
from osrm_exp.spec.stages import FineTune, Given, Statistic


class Searched(Record):
    """A cell's search: what it chose, and every evaluation on the way.

    Two cells that ask for the same search share it, whatever study they belong to.
    """

    cell: Cell
    adapters: tuple[FineTune | Given, ...]  # one a task, then those that give the heads
    statistics: tuple[Statistic, ...] = ()  # that the merge asks for
    version: int = 1

    @property
    def label(self) -> str:
        return f"{self.cell.names['merge']}-s{self.cell.seed}"

    def build(self, folder: Path, workshop: Any) -> None:
        """Runs it, or goes on where it was cut short; see `artifacts.searched`."""
        from osrm_exp.artifacts import searched  # torch: not before there is something to do

        searched.build(self, folder, workshop)
