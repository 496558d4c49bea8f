"""The tables of `docs/methods.md` and `docs/inits.md`, from the configs: `python -m osrm_exp.docs`.

A config's row stands under its key `page`, where `table` names a mark in the page
(`<!-- table: NAME -->`). What follows a mark is written here; the prose around it is not touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from osrm_exp import CONF
from osrm_exp.record import build
from osrm_exp.spec import Merge

DOCS = Path(__file__).parents[1] / "docs"
TABLE = re.compile(r"(<!-- table: (\w+) -->\n)((?:\|.*\n)*)")
NOTHING = "–"
Row = Callable[..., dict[str, str]]


def written(page: str) -> str:
    """The text of `docs/<page>.md` with all its tables made anew.

    Raises:
        ValueError: a config whose `page` lacks a key, has an unknown one or names no table.
    """
    pages: dict[str, tuple[str, Row]] = {"methods": ("merge", _method), "inits": ("init", _init)}
    group, row = pages[page]
    text = (DOCS / f"{page}.md").read_text()
    tables: dict[str, list[dict[str, str]]] = {name: [] for _, name, _ in TABLE.findall(text)}
    for file in sorted((CONF / group).glob("*.yaml")):
        config: Any = OmegaConf.to_container(OmegaConf.load(file))
        table, cells = _row(file, config, row)
        if table not in tables:
            raise ValueError(f"{file}: page.table is {table!r}; docs/{page}.md has: {[*tables]}")
        tables[table].append({f"{group}=": f"`{file.stem}`", **cells})
    return TABLE.sub(lambda found: found[1] + _markdown(tables[found[2]]), text)


def _row(file: Path, config: Mapping[str, Any], row: Row) -> tuple[str, dict[str, str]]:
    """The table that a config names and its cells there."""
    page = dict(config.get("page") or {})
    for key, value in page.items():
        if not isinstance(value, str) or "|" in value or "\n" in value:
            raise ValueError(f"{file}: page.{key} is {value!r}: write one quoted line without '|'")
    try:
        return page.pop("table"), row(config, **page)
    except KeyError as missing:
        raise ValueError(f"{file}: page.{missing.args[0]} is missing; it names a table") from None
    except TypeError as error:
        raise ValueError(f"{file}: a page of another shape: {error}") from None


def _method(
    config: Mapping[str, Any], /, *, formula: str, exact: str, rank: str, flops: str,
    paper: str = NOTHING, released: str = NOTHING,
) -> dict[str, str]:  # fmt: skip
    statistics = config.get("statistics") or {}
    asked = [f"`{k}`" + (f", {s['mode']}" if "mode" in s else "") for k, s in statistics.items()]
    space = build(Merge, config, "merge").space
    return {
        "formula": formula, "space": space, "exact": exact, "rank": rank,
        "flops": flops, "statistics": ", ".join(asked) or NOTHING, "paper": paper,
        "the released code": released,
    }  # fmt: skip


def _init(
    config: Mapping[str, Any], /, *, A: str, asks: str, base: str = NOTHING,
    statistics: str = "",
) -> dict[str, str]:  # fmt: skip
    declared = ", ".join(config.get("statistics") or {})
    return {"A": A, "statistics": statistics or declared or NOTHING, "asks": asks,
            "base and B": base}  # fmt: skip


def _markdown(rows: list[dict[str, str]]) -> str:
    """A table without the columns in which no row says anything."""
    header = [key for key in rows[0] if any(row[key] != NOTHING for row in rows)] if rows else []
    lines = [header, ["---"] * len(header), *([row[key] for key in header] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) if rows else ""


def main() -> None:
    """Writes both pages."""
    for page in ("methods", "inits"):
        (DOCS / f"{page}.md").write_text(written(page))


if __name__ == "__main__":
    main()
