from pathlib import Path

import pandas as pd
import pytest

from osrm_exp.report.published import KNOWN, beside, read_known, write_published
from osrm_exp.report.rows import write_rows
from osrm_exp.searchpath import files

FILE = Path(__file__).parents[2] / "figures" / "known_results.csv"


def ours(row, **of):
    same = {"model": "roberta_large", "dataset": "glue", **of}
    values = {("gaussian", "task_arithmetic"): 0.7, ("osrm", "task_arithmetic"): 0.75,
              ("osrm", "ties"): 0.9}  # fmt: skip
    return [
        row(merge, task, value + step, init=init, line=f"{init}{merge}", **same)
        for (init, merge), value in values.items() for task, step in (("a", 0.0), ("b", 0.02))
    ]  # fmt: skip


def test_every_number_has_a_source_a_trust_and_names_that_are_ours():
    known = read_known(FILE)
    assert known.source.ne("").all() and known.value.notna().all() and len(known) > 50
    assert set(known["merge"]) - {""} <= set(files("merge"))
    assert set(known.init) - {""} <= set(files("init"))
    assert not known.duplicated([c for c in KNOWN if c not in ("source", "trust")]).any()
    osrm = known[known.paper == "2505.22934"]
    assert not (osrm.trust == "high").any()  # none of its tables could be read
    lead = osrm[(osrm.model == "roberta_large") & (osrm.quantity == "score")]
    assert dict(zip(lead.init, lead.value)) == {"gaussian": 70.04, "osrm": 76.59}


def test_a_published_number_stands_beside_ours_of_the_same_arm_and_merge(row):
    table = beside(read_known(FILE), pd.DataFrame(ours(row))).set_index(["init", "merge"])
    assert table.loc[("gaussian", "task_arithmetic"), ["published", "ours"]].tolist() == [
        "70.04", "71.0",
    ]  # fmt: skip
    assert table.loc[("osrm", "task_arithmetic"), "ours"] == "76.0"
    assert set(table.loc[("", "ties"), "ours"]) == {"—"}  # full fine-tuning is no arm of ours
    assert set(table.model) == {"roberta_large"} and "wrong" not in set(table.trust)


def test_a_gain_is_one_between_lines_that_agree(row):
    known = read_known(FILE).query("quantity == 'gain over gaussian' and model == 't5_large'")
    rows = ours(row, model="t5_large")
    rows = [r | {"merge": "regmean"} for r in rows if r["merge"] == "task_arithmetic"]
    rows += [r | {"setup": "s2", "line": r["line"] + "2", "cell": r["cell"] + "2", "value": 0.1}
             for r in rows if r["init"] == "osrm"]  # fmt: skip
    assert list(beside(known, pd.DataFrame(rows)).ours) == ["+5.0"]


def test_rows_of_another_suite_or_model_meet_nothing(row, tmp_path):
    for other in ({"dataset": "mini_glue"}, {"model": "minilm"}):
        assert beside(read_known(FILE), pd.DataFrame(ours(row, **other))).empty
    write_rows(tmp_path, "c", ours(row, model="minilm"))
    assert "holds nothing about these models" in write_published(tmp_path, FILE)
    assert not (tmp_path / "published.md").exists()


def test_published_numbers_enter_no_table_of_ours(row, tmp_path):
    from osrm_exp.report.report import write_report

    write_rows(tmp_path, "c", ours(row))
    before = write_report(tmp_path, draw=False)
    page = write_published(tmp_path, FILE)
    assert "70.04" in page and "medium" in page and page == (tmp_path / "published.md").read_text()
    assert write_report(tmp_path, draw=False) == before and "70.04" not in before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("medium", "certain"), "trust is 'certain', choose one of high, medium, low, wrong"),
        (("70.04", "seventy"), "seventy"),
        (("quantity,value", "quantity,number"), "has the columns"),
    ],
)
def test_a_file_of_another_shape_is_told(tmp_path, change, said):
    file = tmp_path / "known.csv"
    file.write_text(FILE.read_text().replace(*change))
    with pytest.raises(ValueError, match=said):
        read_known(file)
