"""From rows to the lines of a table.

A line is one (setup, init, merge, space, settings). A task's score is its headline metric in
percent, over seeds as mean and standard deviation; seeds that lack a task of the suite stay out of
what is averaged over tasks.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pandas as pd

from osrm_exp.report.scores import EDGE, LOSS, MARKS, recovered

SETUP = ["experiment", "model", "dataset", "tuning", "protocol", "setup"]
ORDER = {"pretrained": -1, "individual": 1}  # references stand around what is merged
SUMMARY = ["average", "lost", "recovered", "kept"]
LINE = ["setup", "line"]


class Score(NamedTuple):
    """Mean and standard deviation over seeds, in percent, and what is to be said of it."""

    mean: float
    std: float
    seeds: int
    marks: str = ""


def lines(found: pd.DataFrame, searches: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row a table line, sorted: its identity, then a `Score` a task, then `SUMMARY`.

    `lost` is expert − score; `recovered` the share of what adapters add to the same model without
    them, both of the suite's averages; `kept` is score / expert, per task, then the mean.

    Args:
        found: what `scores` makes of rows.
        searches: every candidate that a search tried; with it, a choice at the edge is marked.
    """
    table = _identity(found, edges(searches))
    by_task = _scores(found, [*LINE, "task"], "value", list(MARKS)).unstack("task")
    table = table.join(by_task[found.task.unique()]).join(_summary(found)).reset_index()
    first = [*SETUP, "line", "init", "heads", "merge", "space"]
    return _sorted(table[[*first, *(c for c in table if c not in first)]])


def by_task(found: pd.DataFrame) -> pd.DataFrame:
    """One row a line and task, means over seeds: the score, its references and what follows."""
    numbers = ["value", "expert", "bare", "floor", "lost", "gain", "adds", "adds_se"]
    numbers += [LOSS] if found[LOSS].notna().any() else []  # of what is written alone
    grouped = found.groupby([*LINE, "task"], sort=False)
    table = grouped[numbers].mean(numeric_only=True)
    table["recovered"] = recovered(table.gain, table.adds, table.adds_se)
    table.insert(0, "seeds", grouped.seed.nunique())
    flags = grouped[list(MARKS)].any()
    table["marks"] = [
        ", ".join(mark for mark, on in zip(MARKS, line) if on) for line in flags.to_numpy()
    ]
    names = ["model", "init", "heads", "merge", "space", "metric", "output"]
    table = grouped[names].first().join(table).drop(columns=["gain", "adds", "adds_se"])
    return table.rename(columns={"value": "score", "bare": "pretrained"}).reset_index()


def edges(searches: pd.DataFrame | None) -> dict[str, dict[str, tuple[float, float]]]:
    """For every cell, the ends of each numeric coefficient of which it tried more than one value"""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    if searches is None or searches.empty:
        return found
    for cell, points in searches.groupby("cell").point:
        tried = pd.DataFrame(list(points)).select_dtypes("number")
        ends = {k: (tried[k].min(), tried[k].max()) for k in tried if tried[k].nunique() > 1}
        found[str(cell)] = ends
    return found


def _identity(found: pd.DataFrame, ends: dict) -> pd.DataFrame:
    cells = found.drop_duplicates("cell").copy()
    at_edge = [_at_edge(c, ends.get(cell, {})) for c, cell in zip(cells.chosen, cells.cell)]
    pairs = list(zip(cells.settings, cells.chosen, at_edge))
    given = _given(cells)
    alike = _shared(given, [cells["merge"]])
    shared = [alike[merge,] for merge in cells["merge"]]
    cells["shared"] = [" ".join(w for w in own if w in all_) for own, all_ in zip(given, shared)]
    cells["telling"] = [
        text({k: v for k, v in s.items() if k in c or text({k: v}) not in all_}, edge)
        for (s, c, edge), all_ in zip(pairs, shared)
    ]
    cells["settings"] = [text(s, edge) for s, _, edge in pairs]
    cells["chosen"] = [text(c, edge) for _, c, edge in pairs]
    cells["given"] = [text({k: v for k, v in s.items() if k not in c}) for s, c, _ in pairs]
    grouped = cells.groupby(LINE, sort=False)
    table = grouped[[*SETUP[:-1], "init", "heads", "merge", "space"]].first()
    for column in ["settings", "given", "chosen", "telling", "shared"]:
        table[column] = grouped[column].agg(_either)
    cells["search"], cells["data"] = _searches(cells), _told(cells, "data").map(_data)
    table["search"], table["data"] = grouped.search.first(), grouped.data.first()
    table["tuned on"], table["output"] = grouped.tuned_on.first(), grouped.output.first()
    return table.assign(seeds=grouped.seed.nunique())


def _told(cells: pd.DataFrame, column: str) -> pd.Series:
    """What rows say of their search, or of the data that a merge has seen; nothing, of old ones."""
    return cells[column] if column in cells else pd.Series(None, cells.index, dtype=object)


def labels(found: pd.DataFrame) -> pd.Series:
    """Of every score its merge, with what tells it from other lines of that merge in its setup."""
    cells = found.drop_duplicates(LINE).set_index(LINE)
    words = parts(cells) + cells.output.map(lambda output: [output])
    references = cells["merge"].isin(ORDER)  # are alike but for their heads
    words[references] = words[references].map(lambda own: [w for w in own if w.startswith("heads")])
    own = apart(words, [cells.index.get_level_values("setup"), cells["merge"]])
    names = (cells["merge"] + " " + own).str.strip().rename("label")
    return found[LINE].join(names, on=LINE).label


def parts(cells: pd.DataFrame) -> pd.Series:
    """What makes a line of a merge, but for what was chosen: `["(knots)", "scaling=0.3", …]`."""
    every = zip(cells.space, _given(cells), _searches(cells), cells["heads"])
    lists = [
        [f"({space})", *own, *search.split(), f"heads={heads}"]
        for space, own, search, heads in every
    ]
    return pd.Series(lists, cells.index, dtype=object)


def _given(cells: pd.DataFrame) -> pd.Series:
    """The settings that no search chose, one by one, as text."""
    lists = [
        [text({name: value}) for name, value in settings.items() if name not in chosen]
        for settings, chosen in zip(cells.settings, cells.chosen)
    ]
    return pd.Series([[w for w in own if w] for own in lists], cells.index, dtype=object)


def apart(words: pd.Series, keys: list[Any]) -> pd.Series:
    """Of every list of words those that not all lists of its group have, as text."""
    shared = _shared(words, keys)
    own = [" ".join(w for w in one if w not in shared[k]) for one, k in zip(words, zip(*keys))]
    return pd.Series(own, words.index, dtype=object)


def _shared(words: pd.Series, keys: list[Any]) -> dict[Any, set[str]]:
    """By group, the words that all of its lists have."""
    return {key: set.intersection(*map(set, of)) for key, of in words.groupby(keys)}


def _searches(cells: pd.DataFrame) -> pd.Series:
    """The names of searches, and what was set for some of a merge's alone: `cmaes loss rows=8`.

    Of a row that chose and names no search it is `grid`, the only one when rows named none.
    """
    first = cells.chosen.map(lambda chosen: "grid" if chosen else "")
    names = _told(cells, "search").map(lambda said: said["name"] if isinstance(said, dict) else "")
    names = names.where(names != "", first)
    own = apart(_told(cells, "overrides").map(_typed), [cells["merge"], names])
    return names.where(names == "", names + " " + own).str.strip()


def _typed(overrides: Any) -> list[str]:
    """Settings of a search among overrides, by the names that they have in it."""
    typed = overrides if isinstance(overrides, list) else []
    found = (re.fullmatch(r"\+*(?:merge\.)?search\.(.+)", one) for one in typed)
    return sorted({match[1] for match in found if match})


def _data(said: Any) -> str:
    """`unlabeled validation (reported)`: what touches the reported split says so."""
    seen = said if isinstance(said, list) else []
    return ", ".join(f"{s} (reported)" if s.endswith("validation") else s for s in seen)


def _either(settings: pd.Series) -> str:
    """What differs between seeds, side by side: `scaling=0.6 / 1`."""
    first, *rest = dict.fromkeys(settings)
    name = first.partition("=")[0] + "="
    alone = rest and all(s.startswith(name) and " " not in s for s in [first, *rest])
    return " / ".join([first, *(s.removeprefix(name) if alone else s for s in rest)])


def _at_edge(chosen: dict, ends: dict) -> set[str]:
    return {k for k, v in chosen.items() if k in ends and v in ends[k]}


def text(settings: dict[str, Any], at_edge: set[str] = frozenset()) -> str:  # type: ignore[assignment]
    """Settings as `name=value`, but for the space, which is a column, and what is off."""
    kept = {k: v for k, v in settings.items() if k != "space" and v is not None}
    return " ".join(
        (f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}") + (EDGE[0] if k in at_edge else "")
        for k, v in kept.items()
    )


def _scores(found: pd.DataFrame, keys: list[str], value: str, flags: list[str]) -> pd.Series:
    """A `Score` for every group of rows, with the marks that any of them bears."""
    grouped = found.groupby(keys, sort=False)
    numbers = grouped[value].agg(["mean", "std", "count"])
    signs = [MARKS[flag][0] for flag in flags]
    marks = [
        "".join(sign for sign, on in zip(signs, line) if on)
        for line in (grouped[flags].any().to_numpy() if flags else [()] * len(numbers))
    ]
    cells = [Score(*line) for line in zip(*(numbers[c] for c in numbers), marks)]
    return pd.Series(cells, numbers.index)


def _summary(found: pd.DataFrame) -> pd.DataFrame:
    """Averages over the tasks of a suite, seed by seed, then over seeds."""
    suite = found.groupby("setup").task.nunique()
    grouped = found.assign(variance=found.adds_se**2).groupby([*LINE, "seed"], sort=False)
    values = ["value", "lost", "kept", "gain", "adds", "variance"]
    size = suite[grouped.size().index.get_level_values("setup")].to_numpy()
    whole = grouped[values].count().eq(size, axis=0)
    seeds = grouped[values].mean().where(whole)
    error = (seeds.variance / size) ** 0.5
    seeds["recovered"] = recovered(seeds.gain, seeds.adds, error)
    seeds["negative"] = grouped.negative.any()
    seeds = seeds.rename(columns={"value": "average"}).reset_index()
    marked = {"average": ["negative"]}
    return pd.DataFrame({n: _scores(seeds, LINE, n, marked.get(n, [])) for n in SUMMARY})


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    table["order"] = table["merge"].map(ORDER).fillna(0)
    by = [*SETUP, "order", "merge", "space", "given", "init", "heads", "chosen"]
    keys = [[natural(v) for v in table[column]] for column in by]
    order = sorted(table.index, key=lambda i: [key[i] for key in keys])
    return table.loc[order].drop(columns="order").reset_index(drop=True)


NUMBER = re.compile(r"(-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)")


def natural(value: Any) -> list[tuple[float, str]]:
    """A sort key by which `r=4` stands before `r=8` before `r=16`."""
    parts = NUMBER.split(str(value))
    return [(float(p), "") if i % 2 else (float("inf"), p) for i, p in enumerate(parts)]
