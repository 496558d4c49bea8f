import pandas as pd
import pytest

from osrm_exp.report.curves import coefficient_curves, sweep_curves
from osrm_exp.report.plots import curve_plot
from osrm_exp.report.scores import scores


def found(*rows):
    return scores(pd.DataFrame(rows))


def tried(cell, points, split="tune"):
    return [{"cell": cell, "point": p, "score": s, "split": split} for p, s in points]


def test_every_candidate_of_a_search_is_on_the_curve(row):
    table = found(row(chosen={"scaling": 0.3}), row(seed=2, chosen={"scaling": 0.3}))
    points = [({"scaling": s}, 0.5 + s / 10) for s in (0.1, 0.3, 1.0)]
    curves = coefficient_curves(table, pd.DataFrame(tried("l1-1", points) + tried("l1-2", points)))
    assert len(curves) == 6 and set(curves.of) == {"average on tune"}
    assert list(curves[curves.seed == 1].y) == pytest.approx([51, 53, 60])


def test_what_one_seed_alone_went_on_to_try_is_no_mean_of_seeds(row):
    table = found(*(row(seed=s, chosen={"scaling": 0.3}) for s in (1, 2)))
    points = [({"scaling": s}, 0.5 + s / 10) for s in (0.1, 0.3)]
    further = [({"scaling": 0.6}, 0.9)]
    one = pd.DataFrame(tried("l1-1", points + further))
    assert list(coefficient_curves(table, one).x) == [0.1, 0.3, 0.6]
    both = pd.DataFrame(tried("l1-1", points + further) + tried("l1-2", points))
    assert sorted(coefficient_curves(table, both).x) == [0.1, 0.1, 0.3, 0.3]


def test_a_seed_whose_rows_name_no_search_yet_is_on_the_curve_of_the_others(row):
    named = {"search": {"name": "grid"}, "overrides": []}
    rows = [row(chosen={"scaling": 0.3}), row(seed=2, chosen={"scaling": 0.3}, **named)]
    points = [({"scaling": s}, 0.5 + s / 10) for s in (0.1, 0.3)]
    both = pd.DataFrame(tried("l1-1", points) + tried("l1-2", points))
    assert coefficient_curves(found(*rows), both).arm.nunique() == 1


def test_of_what_an_optimiser_proposed_a_value_that_came_twice_makes_no_curve(row):
    points = [({"scaling": 0.3, "density": 0.1}, 0.5), ({"scaling": 0.3, "density": 0.4}, 0.6),
              ({"scaling": 0.7, "density": 0.2}, 0.4)]  # fmt: skip
    assert coefficient_curves(found(row()), pd.DataFrame(tried("l1-1", points))).empty


def test_of_two_coefficients_each_is_shown_at_the_best_of_the_other(row):
    points = [({"scaling": s, "density": d}, s * d) for s in (1, 2) for d in (0.1, 0.2)]
    curves = coefficient_curves(found(row()), pd.DataFrame(tried("l1-1", points)))
    assert dict(zip(zip(curves.curve, curves.x), curves.y)) == pytest.approx(
        {("scaling", 1): 20, ("scaling", 2): 40, ("density", 0.1): 20, ("density", 0.2): 40}
    )


def test_no_evidence_no_curve(row):
    assert coefficient_curves(found(row()), pd.DataFrame()).empty
    assert sweep_curves(found(row())).empty
    points = [({"scaling": 0.3, "merge": "sum", "exact": True}, 0.5)]
    assert coefficient_curves(found(row()), pd.DataFrame(tried("l1-1", points))).empty


def test_a_swept_setting_is_a_curve_and_the_rest_stays_apart(row):
    table = found(
        *(row(line=f"l{s}{d}", value=s / 10, settings={"scaling": s, "density": d})
          for s in (0.3, 0.6, 1.0) for d in (0.2, 0.5)), row("dare", line="d"),
    )  # fmt: skip
    curves = sweep_curves(table)
    assert set(curves["merge"]) == {"ties"} and set(curves.curve) == {"scaling", "density"}
    scaling = curves[curves.curve == "scaling"]
    assert sorted(scaling.x) == [0.3, 0.3, 0.6, 0.6, 1.0, 1.0]
    assert set(scaling.arm) == {"gaussian density=0.2", "gaussian density=0.5"}
    assert scaling.groupby(["arm", "x"]).size().max() == 1  # nothing is a band that is no seed


def test_an_objective_keeps_its_unit_and_an_optimiser_draws_no_curve_of_one_of_many(row):
    searched = [row(line=f"l{i}", search={"name": "cmaes loss"}) for i in (1, 2)]
    points = [({"a": a, "b": 1 - a}, -2 * a) for a in (0.1, 0.4, 0.7)]
    alone = [
        ({"a": a, "fixed": 1.0}, score)
        for (a, _), score in zip((p.values() for p, _ in points), (-0.2, -0.8, -1.4))
    ]
    table = found(*searched)
    every = pd.DataFrame(tried("l1-1", points) + tried("l2-1", alone))
    curves = coefficient_curves(table, every)
    assert set(curves.curve) == {"a"} and set(curves.of) == {"minus loss on tune"}
    assert list(curves.y) == pytest.approx([-0.2, -0.8, -1.4])


def test_samples_are_read_from_the_init_and_a_task_less_is_no_cell(row):
    rows = [
        row(init=f"osrm statistics.others.samples={k}", line=f"l{k}", task=t, value=k / 1000)
        for k in (16, 64, 256) for t in "ab"
    ]  # fmt: skip
    curves = sweep_curves(found(*rows, row(init="osrm samples=512", line="l9", value=0.9)))
    assert set(curves.init) == {"osrm"} and list(curves.x) == [16, 64, 256]
    assert list(curves.y) == pytest.approx([1.6, 6.4, 25.6])


def test_points_lost_against_the_number_of_tasks(row, references):
    rows = []
    for setup, tasks in {"s1": "ab", "s2": "cd", "s3": "abc"}.items():
        of = {"setup": setup, "adapters": [setup]}
        rows += [row(task=t, line=f"l{setup}", value=0.7, **of) for t in tasks]
        rows += references(dict.fromkeys(tasks, 0.5), dict.fromkeys(tasks, 0.8), **of)
        rows[-2 * len(tasks) :] = [r | {"cell": r["cell"] + setup} for r in rows[-2 * len(tasks) :]]
    curves = sweep_curves(found(*rows))
    assert list(curves.x) == [2, 2, 3] and list(curves.y) == pytest.approx([10, 10, 10])
    assert set(curves.of) == {"points lost"} and curves.seed.nunique() == 3


def test_a_panel_a_merge_a_line_an_init_a_band_over_seeds(row):
    rows = [
        row(merge, init=init, seed=seed, line=f"{merge}{init}{s}", value=s / 10 + seed / 100,
            settings={"scaling": s})
        for merge in ("ties", "dare") for init in ("gaussian", "osrm") for seed in (1, 2, 3)
        for s in (0.3, 0.6, 1.0)
    ]  # fmt: skip
    figure = curve_plot(sweep_curves(found(*rows)))
    assert [ax.get_title() for ax in figure.axes] == ["dare", "ties"]
    line, _ = figure.axes[0].lines
    assert list(line.get_ydata()) == pytest.approx([5, 8, 12])
    band = figure.axes[0].collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((4, 13))
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["gaussian", "osrm"]
