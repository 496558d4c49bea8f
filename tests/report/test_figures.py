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
    assert labels == {f"m{i}" for i in range(20, 30)}  # no row knows its floor, and none is drawn


def test_every_line_of_a_merge_is_a_bar_and_a_point_of_its_own(row):
    """Whatever tells lines apart, no figure shows their mean."""
    searched = {"search": {"name": "cmaes loss"}}
    weights = {w: ["merge=ties", f"merge.search.objective.weight={w}"] for w in (0, 0.5)}
    own = {
        "scaling=0.3": {"settings": {"scaling": 0.3, "density": 0.2}},
        "scaling=1": {"settings": {"scaling": 1.0, "density": 0.2}},
        "heads=bare": {"heads": "bare"}, "lowrank": {"output": "lowrank"},
        "(knots)": {"space": "knots"},
        **{f"weight={w}": {**searched, "overrides": o} for w, o in weights.items()},
    }  # fmt: skip
    told = {"heads": "own", "overrides": [], "search": None, "merge_seconds": 1.0}
    rows = [
        row(**{**told, "line": f"l{i}", "value": i / 10, **of}) for i, of in enumerate(own.values())
    ]
    found = scores(pd.DataFrame(rows))
    (ax,) = bar_plot(found).axes
    bars = {c.get_label(): c[0].get_height() for c in ax.containers}
    assert sorted(bars.values()) == pytest.approx([10 * i for i in range(len(own))])
    assert all(any(word in label for label in bars) for word in own)
    assert not any("density=0.2" in label for label in bars)  # as all of them have it
    points = [line.get_ydata() for line in cost_plot(found).axes[0].lines]
    assert sorted(y[0] for y in points if len(y)) == pytest.approx(sorted(bars.values()))


def test_no_two_merges_of_a_figure_share_a_colour(row):
    rows = [row(f"m{i:02}", line=f"l{i}", merge_seconds=1.0) for i in range(15)]
    (ax,) = cost_plot(scores(pd.DataFrame(rows))).axes
    colors = {line.get_label(): line.get_color() for line in ax.lines if not len(line.get_xdata())}
    assert len({colors[f"m{i:02}"] for i in range(15)}) == 15


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
    (tmp_path / "figures" / "mine.svg").touch()
    assert [f.name for f in write_figures(tmp_path, found, figures(found, NONE))] == ["tasks.svg"]
    assert {f.name for f in files[0].parent.glob("*.svg")} == {"tasks.svg", "mine.svg"}  # no ghost
    write_figures(tmp_path, found, figures(found, tried))
    said = (tmp_path / "figures" / "README.md").read_text()
    assert all(f"![{f.stem}]({f.name})" in said for f in files)
    assert "Protocol clean: coefficients chosen on tune" in said and "Seeds: 1." in said
    assert "Average on tune against scaling" in said


def test_a_coefficient_of_a_group_of_layers_is_no_folder(row, tmp_path):
    found = scores(pd.DataFrame([row()]))
    tried = pd.DataFrame(
        {"cell": "l1-1", "point": {"layers0/scale": x}, "score": x, "split": "tune"}
        for x in (0.1, 0.2)
    )
    names = [file.name for file in write_figures(tmp_path, found, figures(found, tried))]
    assert "tried_layers0_scale_tune.svg" in names
