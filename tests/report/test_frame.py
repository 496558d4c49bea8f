import pandas as pd
import pytest

from osrm_exp.report.frame import by_task, edges, lines, natural
from osrm_exp.report.scores import scores


def table(*rows, searches=None):
    return lines(scores(pd.DataFrame(rows)), searches).set_index("merge")


def test_averages_losses_and_what_is_recovered_are_of_the_suite(row, references):
    found = table(
        row(value=0.7), row(task="b", value=0.6),
        *references({"a": 0.5, "b": 0.5}, {"a": 0.8, "b": 0.6}),
    ).loc["ties"]  # fmt: skip
    assert found.average.mean == pytest.approx(65) and found.lost.mean == pytest.approx(5)
    assert found.recovered.mean == pytest.approx(75)  # 15 of 20 points
    assert found.kept.mean == pytest.approx((87.5 + 100) / 2)


def test_nothing_is_recovered_where_adapters_add_nothing(row, references):
    found = table(row(value=0.52), *references({"a": 0.50}, {"a": 0.53}))
    assert found.recovered.str[0].isna().all() and found.loc["ties", "lost"].mean < 2


def test_a_missing_task_or_expert_leaves_the_averages_empty(row):
    found = table(row(), row("dare", line="l2"), row("dare", "b", line="l2"))
    assert pd.isna(found.loc["ties", "b"]) and found.loc["ties", "average"].seeds == 0
    assert found.loc["dare", "average"].mean == 50 and found.loc["dare", "lost"].seeds == 0


def test_seeds_are_averaged_with_their_spread_and_setups_are_not(row):
    found = table(row(value=0.4), row(value=0.6, seed=2), row(setup="s2", line="l2"))
    assert [tuple(s) for s in found.average] == [
        (pytest.approx(50), pytest.approx(14.142, abs=1e-3), 2, ""),
        (50, pytest.approx(float("nan"), nan_ok=True), 1, ""),
    ]


def test_a_seed_without_all_tasks_is_left_out_of_the_average(row):
    found = table(row(value=0.4), row(task="b", value=0.4), row(value=1.0, seed=2))
    assert found.average.iloc[0][:1] == (pytest.approx(40),) and found.average.iloc[0].seeds == 1
    assert found.a.iloc[0].seeds == 2


def test_a_sweep_is_never_averaged_over_and_stands_in_numerical_order(row):
    rows = [
        row(init=init, line=f"{init}{s}", settings={"scaling": s}, value=s / 100)
        for init in ("osrm", "gaussian") for s in (10, 8, 0.3, 4)
    ]  # fmt: skip
    found = lines(scores(pd.DataFrame(rows)))
    assert [s.mean for s in found.average] == pytest.approx([0.3, 0.3, 4, 4, 8, 8, 10, 10])
    assert list(found.init[:2]) == ["gaussian", "osrm"]


def test_setups_stand_in_numerical_order(row):
    rows = [row(tuning=f"lora lora.r={r}", setup=f"s{r}", line=f"l{r}") for r in (8, 16, 4)]
    assert list(lines(scores(pd.DataFrame(rows))).setup) == ["s4", "s8", "s16"]


def test_references_stand_around_what_is_merged(row, references):
    found = table(row(), row("average", line="l2"), *references({"a": 0.5}, {"a": 0.8}))
    assert list(found.index) == ["pretrained", "average", "ties", "individual"]


def test_a_choice_at_the_edge_of_its_grid_is_marked(row):
    rows = [row(chosen={"scaling": s}, settings={"scaling": s, "density": 0.2}, line=f"l{s}")
            for s in (0.3, 1.0)]  # fmt: skip
    tried = pd.DataFrame(
        {"cell": cell, "point": {"scaling": s, "density": 0.2}, "score": s, "split": "tune"}
        for cell in ("l0.3-1", "l1.0-1") for s in (0.1, 0.3, 1.0)
    )  # fmt: skip
    found = table(*rows, searches=tried)
    assert list(found.chosen) == ["scaling=0.3", "scaling=1^"]
    assert list(found.settings) == ["scaling=0.3 density=0.2", "scaling=1^ density=0.2"]
    assert edges(tried)["l0.3-1"] == {"scaling": (0.1, 1.0)} and edges(None) == {}


def test_a_negative_correlation_marks_the_average_that_holds_it(row):
    found = table(row(), row(task="b", value=-0.7, metric="pearson"))
    assert found.b.iloc[0].marks == "¶" and found.average.iloc[0].marks == "¶"


def test_a_task_has_its_references_beside_it(row, references):
    rows = [row(value=0.7), *references({"a": 0.6}, {"a": 0.8})]
    found = by_task(scores(pd.DataFrame(rows))).set_index("merge").loc["ties"]
    assert (found.score, found.expert, found.pretrained) == pytest.approx((70, 80, 60))
    assert found.recovered == pytest.approx(50)


def test_numbers_in_names_sort_as_numbers():
    names = ["r=16", "r=4", "r=8", "a", "1e-3", "2e-4", ""]
    assert sorted(names, key=natural) == ["", "2e-4", "1e-3", "a", "r=4", "r=8", "r=16"]


def test_the_loss_of_what_is_written_stands_beside_its_score_where_there_is_one(row):
    rows = [row(task=task, metric="rouge_l", value=0.4) for task in ("a", "b")]
    assert "response_loss" not in by_task(scores(pd.DataFrame(rows)))
    rows.append(row(task="a", metric="response_loss", value=2.5, headline=False))
    found = by_task(scores(pd.DataFrame(rows))).set_index("task")
    assert found.loc["a", "response_loss"] == 2.5 and found.loc["b"].isna().response_loss
    assert found.loc["a", "score"] == 40
