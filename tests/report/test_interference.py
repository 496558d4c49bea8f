import pandas as pd
import pytest

from osrm_exp.report.interference import DEPTHS, MAPS, depth_plot, heat_maps, interference

TASKS, MODULES = ["cola", "sst2", "rte"], ["layer.0.query", "layer.1.query"]


@pytest.fixture
def rows():
    """Interference of A is 1 for `gaussian` and 0.1 for `osrm`, twice as much in layer 1."""
    found = []
    pairs = [(t, s) for t in TASKS for s in TASKS]
    metrics = {(m, stage) for m, stage, _ in MAPS} | {(m, stage) for m, stage, *_ in DEPTHS}
    for init, size in (("gaussian", 1.0), ("osrm init.row_norm=1", 0.1)):
        for depth, module in enumerate(MODULES):
            for metric, stage in sorted(metrics):
                alone = metric in ("drift_A", "kept_energy")
                for task, other in [(t, None) for t in TASKS] if alone else pairs:
                    value = size * (1 + depth)
                    found.append(
                        {"cell": "c", "init": init, "seed": 42, "module": module, "stage": stage,
                         "metric": metric, "task": task, "other": other, "value": value}
                    )  # fmt: skip
    return pd.DataFrame(found)


def test_a_heat_map_shows_the_mean_over_modules_of_every_ordered_pair(rows):
    rows.loc[(rows.task == "rte") & (rows.other == "cola"), "value"] = 0.0
    figure = heat_maps(rows)
    images = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    assert len(images) == 2 * len(MAPS) and images[0].shape == (3, 3)
    assert images[0][0, 1] == pytest.approx(1.5) and images[1][0, 1] == pytest.approx(0.15)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["gaussian", "osrm\ninit.row_norm=1"]
    assert images[0][2, 0] == 0 and images[0][0, 2] == pytest.approx(1.5)  # row: adapter


def test_the_depth_plot_has_a_line_an_init_over_modules_in_order(rows):
    figure = depth_plot(rows)
    panels = [ax for ax in figure.axes if ax.lines]
    assert len(panels) == len(DEPTHS)
    for ax in panels:
        first, second = (list(line.get_ydata()) for line in ax.lines)
        assert first == pytest.approx([1, 2]) and second == pytest.approx([0.1, 0.2])
    assert [t.get_text() for t in panels[-1].get_xticklabels()] == ["0", "1"]


def test_kinds_of_modules_stand_apart(rows):
    values = rows.assign(module=rows.module.str.replace("query", "value"), value=rows.value * 100)
    found = {name: figure for name, figure, _ in interference(pd.concat([rows, values]))}
    assert list(found) == [
        "interference_query", "layers_query", "interference_value", "layers_value"
    ]  # fmt: skip
    heat = found["interference_value"].axes[0].images[0].get_array()
    assert heat[0, 1] == pytest.approx(150)
