"""The same pictures in wandb: a workspace over an experiment's runs, and a report with its table.

What a panel draws is what `osrm_exp.logged` tells of every cell. Both are plain objects until they
are saved, which needs an account.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from osrm_exp.report.captions import caption
from osrm_exp.report.frame import lines
from osrm_exp.report.tables import footnote, shown

ARM, MERGE = wr.Config("cell.init"), wr.Config("cell.merge")
MEDIA = "Made from the rows of every cell, in its run."


def panels(found: pd.DataFrame, searches: pd.DataFrame) -> dict[str, list[Any]]:
    """Panels by section, for what these `scores` and searches hold."""
    tasks = [str(task) for task in found.task.unique()]
    sections = {
        "Merged against single": _merged(tasks),
        "Coefficients": _coefficients(searches),
        "Training": [
            _line("Loss", [f"{task}/epoch_loss" for task in tasks]),
            *(_line(task, [f"{task}/{metric}"]) for task, metric in _headlines(found)),
        ],
        "Interference": _interference(),
        "Cost": [
            _points("Average against the seconds of one merge", "cost/merge_seconds", log_x=True),
            _bars("Seconds of a cell", ["cost/seconds"], MERGE),
        ],
    }
    return {name: found for name, found in sections.items() if found}


def _merged(tasks: list[str]) -> list[Any]:
    return [
        _bars("Average of the tasks, percent", ["merged/average"], MERGE),
        _bars("Recovered of what the adapters add, percent", ["recovered"], MERGE),
        _bars("Points lost against the experts", ["lost/average"], MERGE),
        _bars("Experts and the bare model", ["expert/average", "pretrained/average"], ARM),
        _bars("Task by task", [f"merged/{task}" for task in tasks], MERGE),
        wr.MediaBrowser(title=MEDIA, media_keys=["figures/tasks"]),
    ]


def _interference() -> list[Any]:
    responses = ("response_A_start", "response_A_end", "response_BA_end")
    return [
        _points(
            "Interference after training against the merged average",
            "interference/response_BA_end_foreign",
        ),
        _bars(
            "Response to foreign inputs: A at its start and end, BA at its end",
            [f"interference/{key}_foreign" for key in responses],
            ARM,
        ),
        wr.MediaBrowser(
            title=MEDIA, media_keys=["figures/interference_query", "figures/interference_value"]
        ),
    ]


def workspace(
    group: str, found: pd.DataFrame, searches: pd.DataFrame, *, entity: str, project: str
) -> Any:
    """The workspace of an experiment: its group of runs alone, failed ones in sight."""
    sections = [
        ws.Section(name=name, panels=drawn, is_open=number < 2)
        for number, (name, drawn) in enumerate(panels(found, searches).items())
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=group,
        sections=sections,
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=f"Metric('Group') == '{group}'",
            pinned_columns=["run:displayName", "summary:merged/average", "summary:recovered"],
        ),
    )


def report(
    group: str, found: pd.DataFrame, searches: pd.DataFrame, *, entity: str, project: str
) -> Any:
    """A report: how the numbers came about, the table, and the workspace's panels."""
    runs = wr.Runset(name=group, filters=f"Metric('Group') == '{group}'")  # of its own project
    text, notes = shown(lines(found, searches))
    blocks: list[Any] = [
        wr.P(caption(found)),
        wr.H2("Table"),
        wr.MarkdownBlock(text.to_markdown(index=False)),
        wr.P(footnote(found, text, notes)),
    ]
    for name, drawn in panels(found, searches).items():
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=drawn)]
    return wr.Report(
        project=project, entity=entity, title=group, width="fluid", blocks=blocks,
        description="Made from rows by osrm_exp.dashboard; it does not change when runs are added.",
    )  # fmt: skip


def _bars(title: str, metrics: Sequence[str], by: Any) -> Any:
    return wr.BarPlot(
        title=title, metrics=list(metrics), groupby=by, orientation="v",
        groupby_rangefunc="minmax", max_bars_to_show=50,
    )  # fmt: skip


def _points(title: str, x: str, log_x: bool = False) -> Any:
    return wr.ScatterPlot(
        title=title, x=wr.SummaryMetric(x), y=wr.SummaryMetric("merged/average"), log_x=log_x
    )


def _line(title: str, metrics: Sequence[str]) -> Any:
    return wr.LinePlot(
        title=title, x="trainer/global_step", y=list(metrics), groupby=ARM,
        groupby_rangefunc="minmax", max_runs_to_show=100,
    )  # fmt: skip


def _coefficients(searches: pd.DataFrame) -> list[Any]:
    """A curve for every number that a search tried, on the split that chose."""
    if searches.empty:
        return []
    names = {k: v for point in searches.point for k, v in point.items()}
    numbers = [k for k, v in names.items() if isinstance(v, (int, float)) and v is not True]
    curves = [
        wr.LinePlot(
            title=f"Average on the selecting split against {name}", x=f"search/{name}",
            y=["search/score"], groupby=MERGE, groupby_rangefunc="minmax", max_runs_to_show=100,
        )
        for name in sorted(numbers)
    ]  # fmt: skip
    chosen = [_bars(f"Chosen {name}", [f"chosen/{name}"], MERGE) for name in sorted(numbers)]
    return [*curves, *chosen]


def _headlines(found: pd.DataFrame) -> list[tuple[str, str]]:
    return list(found[["task", "metric"]].drop_duplicates().itertuples(index=False, name=None))
