import pandas as pd
import pytest

from osrm_exp.report.rows import write_rows
from osrm_exp.report.tables import lines, shown, write_report, write_tables


def row(merge="ties", task="a", value=0.5, seed=1, line="l1", setup="s1", **other):
    return {
        "experiment": "x", "model": "m", "dataset": "d", "tuning": "t", "protocol": "clean",
        "init": "gaussian", "merge": merge, "space": "delta", "chosen": {},
        "settings": {"scaling": 0.3, "density": 0.2},
        "tuned_on": "tune", "seed": seed, "task": task, "split": "validation", "metric": "accuracy",
        "value": value, "headline": True, "degenerate": False, "output": "shared, dense",
        "adapters": [f"{setup}-{seed}"], "setup": setup, "line": line, "cell": f"{line}-{seed}",
        **other,
    }  # fmt: skip


def test_average_and_share_of_single_task():
    single = dict(merge="individual", line="l0")
    table = lines(pd.DataFrame([
        row(value=0.4), row(task="b", value=0.9),
        row(value=0.8, **single), row(task="b", value=0.9, **single),
    ])).set_index("merge")  # fmt: skip
    assert table.average["ties"][0] == pytest.approx(65)
    assert table.kept["ties"][0] == pytest.approx((50 + 100) / 2)
    assert table.kept["individual"][0] == pytest.approx(100)


def test_a_missing_task_leaves_the_average_empty():
    table = lines(pd.DataFrame([row(), row(merge="dare", line="l2"),
                                row(merge="dare", line="l2", task="b")]))  # fmt: skip
    text, _ = shown(table)
    text = text.set_index("merge")
    assert text.loc["ties", "average"] == "—" and text.loc["ties", "b"] == "—"
    assert text.loc["dare", "average"] == "50.0"


def test_no_share_without_the_same_adapters_alone():
    table = lines(pd.DataFrame([row(), row(merge="individual", line="l0", seed=2)]))
    assert shown(table)[0].set_index("merge").loc["ties", "kept"] == "—"


def test_seeds_are_averaged_with_their_spread_and_setups_are_not():
    table = lines(
        pd.DataFrame([row(value=0.4), row(value=0.6, seed=2), row(setup="s2", line="l2")])
    )
    text, _ = shown(table)
    assert list(text.average) == ["50.0 ± 14.1", "50.0"] and list(text.seeds) == [2, 1]
    assert "setup" in text


def test_a_seed_without_all_tasks_is_left_out_of_the_average():
    table = lines(pd.DataFrame([row(value=0.4), row(task="b", value=0.4), row(value=1.0, seed=2)]))
    assert table.average[0][:1] == (pytest.approx(40),) and table.average[0][2] == 1


def test_two_headlines_for_one_task_are_refused():
    with pytest.raises(ValueError, match="two headline rows"):
        lines(pd.DataFrame([row(), row(metric="f1")]))


def test_the_table_shows_what_a_search_chose_and_all_that_differs_otherwise():
    chosen = [row(line=f"l{i}", chosen={"scaling": 0.3}) for i in range(2)]
    assert set(shown(lines(pd.DataFrame(chosen)))[0].settings) == {"scaling=0.3"}
    other = row(line="l3", chosen={"scaling": 0.3}, settings={"scaling": 0.3, "density": 0.5})
    text = shown(lines(pd.DataFrame([*chosen, other])))[0]
    assert set(text.settings) == {"scaling=0.3 density=0.2", "scaling=0.3 density=0.5"}
    assert set(shown(lines(pd.DataFrame([row()])))[0].settings) == {"scaling=0.3 density=0.2"}


def test_a_task_that_was_not_learned_alone_has_no_share():
    rows = [row(), row(merge="individual", line="l0", value=-0.1)]
    assert shown(lines(pd.DataFrame(rows)))[0].set_index("merge").loc["ties", "kept"] == "—"


def test_degenerate_predictions_are_marked():
    assert shown(lines(pd.DataFrame([row(degenerate=True)])))[0].a[0] == "50.0*"


def test_all_formats_are_written(tmp_path):
    write_rows(tmp_path, "c1", [row(merge="individual", line="l0"), row(value=0.25)])
    text = write_tables(tmp_path)
    assert "50.0" in text and "protocol: clean" in text
    assert "| ties" in (tmp_path / "table.md").read_text()
    latex = (tmp_path / "table.tex").read_text()
    assert "\\toprule" in latex and "\\textbf{25.0}" in latex and "\\textbf{50.0}" in latex
    frame = pd.read_csv(tmp_path / "table.csv")
    assert frame.set_index("merge").loc["ties", "a"] == 25
    with pytest.raises(ValueError, match="no rows yet"):
        write_tables(tmp_path / "empty")


def test_diagnostics_become_means_and_figures_beside_the_tables(tmp_path):
    found = {"cell": "c", "init": "osrm", "seed": 1, "tasks": ["a", "b"], "module": "layer.0.query"}
    pairs, single = [[0.4, 0.1], [0.1, 0.4]], [0.2, 0.3]
    metrics = {
        "start": {"response_A": pairs, "overlap_A": pairs},
        "end": {"response_A": pairs, "response_BA": pairs, "overlap_A": pairs, "overlap_B": pairs,
                "drift_A": single, "kept_energy": single},
    }  # fmt: skip
    write_rows(tmp_path, "c", [row()])
    write_rows(
        tmp_path, "c",
        [{**found, "stage": stage, "metric": m, "values": v}
         for stage, of in metrics.items() for m, v in of.items()], "diagnostics",
    )  # fmt: skip
    write_report(tmp_path)
    assert "0.250" in (tmp_path / "diagnostics.md").read_text()  # drift, mean of both tasks
    assert (tmp_path / "interference.svg").stat().st_size > 1000
    assert (tmp_path / "layers.svg").stat().st_size > 1000
