"""What a cell's run in a dashboard carries, made from rows like every table: what arms are grouped
by, scores beside their references in percent, the evidence, and figures."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from io import BytesIO
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osrm_exp.report.rows import lowered

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FACTS = """experiment model dataset tuning init heads merge space settings protocol seed cell line
setup chosen tuned_on search data output""".split()
COLUMNS = """task split metric value headline floor rows largest_share degenerate
expert_tuned_score""".split()
SCORES = {"value": "merged", "expert": "expert", "bare": "pretrained", "lost": "lost"}


def facts(row: Mapping[str, Any]) -> dict[str, Any]:
    """What tells one arm from another: none of it lies anywhere."""
    return {key: row[key] for key in FACTS if key in row and row[key] == row[key]}


def publish(logger: Any, results: Path | str, cell: str) -> None:
    """Tells a logger what the rows of a finished cell say.

    Its references, and with them `expert`, `lost` and `recovered`, are rows of the same
    adapters in the same folder, as far as they are there: sweep `pretrained`, `individual` first.
    """
    import pandas as pd

    from osrm_exp.report.rows import read_rows

    rows = read_rows(results)
    found, own = _with_references(rows, cell), rows[rows.cell == cell]
    tried = _of(read_rows(results, "searches"), [cell])
    diagnosed = _of(read_rows(results, "diagnostics"), found.cell)
    said = {**facts(own.iloc[0]), "tried": list(tried.get("point", ())), "experts": _experts(own)}
    logger.log_hyperparams({"cell": said, "outcome": "finished"})
    for step, metrics in enumerate(_candidates(tried, lowered(own.iloc[0]))):
        logger.log_metrics(metrics, step)
    logger.log_metrics(summary(rows, cell))
    logger.log_table("rows", dataframe=own[[c for c in COLUMNS if c in own]])
    if len(tried):
        points = pd.json_normalize(tried[["point", "score", "split"]].to_dict("records"))
        logger.log_table("searches", dataframe=points)
    if len(diagnosed):
        logger.log_metrics(_interference(diagnosed))
    for name, figure, what in _figures(found, tried, _of(diagnosed, [cell])):
        logger.log_image(f"figures/{name}", [_png(figure)], caption=[what])


def summary(rows: pd.DataFrame, cell: str) -> dict[str, float]:
    """What a cell came to beside its references among these rows, as far as it is known."""
    from osrm_exp.report.frame import lines

    found, own = _with_references(rows, cell), rows[rows.cell == cell]
    first = own.iloc[0]
    line = lines(found).set_index("line").loc[first.line]
    told = {name: line[name].mean for name in ("recovered", "kept")}
    told |= _scores(found[found.cell == cell]) | _tuned(own, first) | _cost(first)
    known = {name: value for name, value in told.items() if value is not None}
    return {name: float(value) for name, value in known.items() if value == value}


def _with_references(rows: pd.DataFrame, cell: str) -> pd.DataFrame:
    from osrm_exp.report.scores import REFERENCES, scores

    own = rows.cell == cell
    same = rows.adapters.map(tuple) == tuple(rows[own].adapters.iloc[0])
    return scores(rows[own | (same & rows["merge"].isin(REFERENCES))])


def _candidates(tried: pd.DataFrame, objective: str) -> Iterator[dict[str, float]]:
    """Every point of a search: its coefficients that are numbers, and its score in percent, or
    minus the objective that it lowered."""
    for point, score in zip(tried.get("point", ()), tried.get("score", ())):
        if score is None or score != score:  # a step of a gradient search, given up by another
            continue
        numbers = {k: v for k, v in point.items() if isinstance(v, Real)}
        told = {f"search/minus {objective}": score} if objective else {"search/score": 100 * score}
        yield {**{f"search/{k}": float(v) for k, v in numbers.items()}, **told}


def _scores(own: pd.DataFrame) -> dict[str, float]:
    """By task and on average; an average of all tasks or none."""
    found: dict[str, float] = {}
    for column, name in SCORES.items():
        found |= {f"{name}/{task}": value for task, value in zip(own.task, own[column])}
        found[f"{name}/average"] = own[column].mean(skipna=False)
    return found


def _experts(own: pd.DataFrame) -> dict[str, float]:
    """What each task's own adapter reached on the split that selects, in percent."""
    if "expert_tuned_score" not in own:
        return {}
    known = own.dropna(subset="expert_tuned_score")
    return {task: 100 * score for task, score in zip(known.task, known.expert_tuned_score)}


def _tuned(own: pd.DataFrame, first: pd.Series) -> dict[str, float]:
    """The two scores that a study may be told, in percent."""
    experts, score = _experts(own), first.get("tuned_score")
    whole = len(experts) == own.task.nunique()
    found = {"tuned/single": sum(experts.values()) / len(experts)} if experts and whole else {}
    return found if score is None or lowered(first) else {**found, "tuned/merged": 100 * score}


def _cost(first: pd.Series) -> dict[str, float]:
    chosen = {k: v for k, v in first.chosen.items() if isinstance(v, Real)}
    seconds = {f"cost/{name}": first.get(name) for name in ("merge_seconds", "seconds")}
    return {**{f"chosen/{name}": value for name, value in chosen.items()}, **seconds}


def _of(rows: pd.DataFrame, cells: Collection[str]) -> pd.DataFrame:
    return rows[rows.cell.isin(list(cells))] if len(rows) else rows


def _interference(diagnosed: pd.DataFrame) -> dict[str, float]:
    from osrm_exp.diagnostics import summary, tidy

    (line,) = summary(tidy(diagnosed)).to_dict("records")
    return {f"interference/{name.replace(' ', '_')}": value for name, value in line.items()}


def _figures(
    found: pd.DataFrame, tried: pd.DataFrame, diagnosed: pd.DataFrame
) -> Iterator[tuple[str, Figure, str]]:
    from osrm_exp.diagnostics import tidy
    from osrm_exp.report.figures import figures
    from osrm_exp.report.interference import interference

    yield from (one for one in figures(found, tried) if one[0] != "cost")  # of one cell, a point
    yield from interference(tidy(diagnosed)) if len(diagnosed) else ()


def _png(figure: Figure) -> Any:
    from PIL import Image

    file = BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return Image.open(file).convert("RGB")
