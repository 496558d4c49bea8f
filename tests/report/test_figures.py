import pandas as pd
import pytest

from osrm_exp.report.figures import figures, write_figures
from osrm_exp.report.plots import MOST, bar_plot, cost_plot
from osrm_exp.report.scores import scores

NONE = pd.DataFrame()


@pytest.fixture
def found(row, references):
    tasks = {"a": 0.7, "b": 0.6}
    rows = [row(task=t, value=v) for t, v in tasks.items()]
    rows += [row("dare", task=t, value=v - 0.1, line="l2") for t, v in tasks.items()]
    rows += references({"a": 0.5, "b": 0.55}, {"a": 0.8, "b": 0.9})
    return scores(pd.DataFrame(rows))


def test_bars_stand_between_floor_and_expert(found):
    (ax,) = bar_plot(found).axes
    bars = {c.get_label(): [bar.get_height() for bar in c] for c in ax.containers}
    assert bars["ties"] == pytest.approx([70, 60]) and bars["dare"] == pytest.approx([60, 50])
    assert bars["floor"] == pytest.approx([50, 50])
    lines = {c.get_label(): [path[0][1] for path in c.get_segments()] for c in ax.collections}
    assert lines["expert"] == pytest.approx([80, 90])
    assert lines["without adapter"] == pytest.approx([50, 55])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"]


def test_of_many_merges_the_best_are_drawn_and_that_is_said(row):
    rows = [row(f"m{i}", line=f"l{i}", value=i / 100) for i in range(30)]
    (legend,) = bar_plot(scores(pd.DataFrame(rows))).legends
    assert legend.get_title().get_text() == f"{MOST} best of 30"
    labels = {t.get_text() for t in legend.get_texts()}
    assert labels == {"floor", *(f"m{i}" for i in range(20, 30))}


def test_lines_of_one_merge_are_told_apart(row):
    rows = [row(line=f"l{s}", settings={"scaling": s}) for s in (0.3, 1.0)]
    (legend,) = bar_plot(scores(pd.DataFrame(rows))).legends
    labels = {t.get_text() for t in legend.get_texts()}
    assert labels == {"floor", "ties (delta) scaling=0.3", "ties (delta) scaling=1"}


def test_cost_is_drawn_where_merges_were_timed(found):
    assert "cost" not in {name for name, *_ in figures(found, NONE)}
    timed = found.assign(merge_seconds=found["merge"].map({"ties": 2.0, "dare": 0.5}))
    assert "cost" in {name for name, *_ in figures(timed, NONE)}
    lines = [line.get_xydata() for line in cost_plot(timed).axes[0].lines]
    points = dict(line[0] for line in lines if len(line))
    assert points == pytest.approx({2.0: 65, 0.5: 55})


def test_every_figure_has_a_caption_and_the_same_rows_draw_the_same_files(found, tmp_path):
    tried = pd.DataFrame(
        {"cell": "l1-1", "point": {"scaling": s}, "score": s, "split": "tune"} for s in (0.1, 0.3)
    )
    files = write_figures(tmp_path, found, figures(found, tried))
    first = [file.read_bytes() for file in files]
    assert [f.name for f in files] == ["tasks.svg", "tried_scaling_tune.svg"]
    assert first == [f.read_bytes() for f in write_figures(tmp_path, found, figures(found, tried))]
    assert b"dc:date" not in first[0]
    said = (tmp_path / "figures" / "README.md").read_text()
    assert all(f"![{f.stem}]({f.name})" in said for f in files)
    assert "Protocol clean: coefficients chosen on tune" in said and "Seeds: 1." in said
    assert "Average on tune against scaling" in said
