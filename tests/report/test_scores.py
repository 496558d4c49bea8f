import pandas as pd
import pytest

from osrm_exp.report.scores import MARKS, recovered, scores, standard_error


def found(*rows):
    return scores(pd.DataFrame(rows)).set_index(["merge", "task"])


def test_a_score_is_measured_against_its_own_experts_and_the_model_without_them(row, references):
    table = found(row(value=0.7), *references({"a": 0.6}, {"a": 0.8})).loc[("ties", "a")]
    assert (table.lost, table.gain, table.adds) == pytest.approx((10, 10, 20))
    assert table.kept == pytest.approx(87.5)


@pytest.mark.parametrize(
    "other", [{"adapters": ["z"]}, {"setup": "s2", "adapters": ["s1-1"]}, {"heads": "osrm"}]
)
def test_references_of_other_adapters_setups_or_heads_are_none(row, references, other):
    table = found(row(value=0.7, **other), *references({"a": 0.6}, {"a": 0.8}))
    assert table.loc[("ties", "a"), ["lost", "kept", "gain"]].isna().all()


def test_standard_errors_are_binomial_or_fishers():
    value, correlation = pd.Series([80.0, 60.0]), pd.Series([False, True])
    error = standard_error(value, correlation, pd.Series([400.0, 101.0]))
    assert list(error) == pytest.approx([2.0, 6.4])


def test_recovered_is_shown_where_the_adapters_clearly_add_something():
    adds = pd.Series([20.0, 3.9, -20.0, 20.0])
    share = recovered(pd.Series([10.0] * 4), adds, pd.Series([2.0, 2.0, 2.0, float("nan")]))
    assert share[0] == 50 and share[1:].isna().all()


@pytest.mark.parametrize(
    ("mark", "keys"),
    [
        ("constant", {"degenerate": True, "largest_share": 1.0}),
        ("lopsided", {"largest_share": 0.951}),
        ("below", {"floor": 0.6}),
        ("below", {"metric": "mcc", "value": -0.1}),
        ("negative", {"metric": "pearson", "value": -0.7}),
        ("unlearned", {"merge": "individual", "floor": 0.46, "rows": 400}),
        (None, {"floor": 0.5, "largest_share": 0.95}),
        (None, {"merge": "individual", "floor": 0.44, "rows": 400}),
        (None, {"merge": "individual"}),
    ],
)
def test_what_a_score_has_to_say_of_itself(row, mark, keys):
    table = found(row(**keys))
    assert [m for m in MARKS if table[m].iloc[0]] == ([mark] if mark else [])


def test_two_headlines_for_one_task_are_refused(row):
    with pytest.raises(ValueError, match="cell l1-1 has two headline rows"):
        found(row(), row(metric="f1"))
