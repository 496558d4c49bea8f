import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from osrm_exp.report.frame import lines
from osrm_exp.report.report import write_report
from osrm_exp.report.rows import read_rows, write_rows
from osrm_exp.report.scores import scores
from osrm_exp.report.tables import best, cell, markdown, shown, write_tables


def texts(*rows):
    return shown(lines(scores(pd.DataFrame(rows))))[0].set_index("merge")


def test_what_is_the_same_everywhere_moves_to_the_notes(row):
    table = lines(scores(pd.DataFrame([row(), row("dare", line="l2", tuning="t r=4", setup="s2")])))
    text, notes = shown(table)
    assert list(text.tuning) == ["t", "t r=4"] and "protocol: clean" in notes
    assert not {"model", "seeds", "heads", "kept", "given", "line"} & set(text)
    assert "heads" in shown(lines(scores(pd.DataFrame([row(), row(heads="osrm", line="l2")]))))[0]


def test_a_score_shows_its_spread_and_its_marks(row):
    found = texts(row(value=0.4, degenerate=True), row(value=0.6, seed=2), row(task="b"))
    assert found.loc["ties", "a"] == "50.0 ± 14.1*" and found.loc["ties", "b"] == "50.0"
    assert cell(float("nan")) == "—" and not {"lost", "recovered"} & set(found)  # known of no line


def test_the_table_shows_what_tells_a_merges_lines_apart_and_notes_the_rest(row):
    def told(*rows):
        text, notes = shown(lines(scores(pd.DataFrame(rows))))
        return set(text.settings), [note for note in notes if note.startswith("every ")]

    chosen = [row(line=f"l{i}", chosen={"scaling": 0.3}) for i in range(2)]
    assert told(*chosen) == ({"scaling=0.3"}, ["every ties: density=0.2"])
    other = row(line="l3", chosen={"scaling": 0.3}, settings={"scaling": 0.3, "density": 0.5})
    full = {"scaling=0.3 density=0.2", "scaling=0.3 density=0.5"}
    assert told(*chosen, other) == (full, [])
    swept = [row(line=f"l{s}", settings={"scaling": s, "density": 0.2}) for s in (0.3, 0.6)]
    assert told(*swept) == ({"scaling=0.3", "scaling=0.6"}, ["every ties: density=0.2"])
    assert told(row()) == ({"scaling=0.3 density=0.2"}, [])


def test_seeds_that_chose_otherwise_stand_side_by_side(row):
    rows = [
        row(seed=s, chosen={"scaling": v}, settings={"scaling": v}) for s, v in ((1, 0.6), (2, 1))
    ]
    assert texts(*rows).loc["ties", "settings"] == "scaling=0.6 / 1"


def test_the_best_is_found_within_a_setup_and_its_heads(row):
    rows = [
        row(setup=setup, line=f"{setup}{init}{heads}", init=init, heads=heads, value=value)
        for setup, init, heads, value in (
            ("s1", "gaussian", "own", 0.5), ("s1", "osrm", "own", 0.6), ("s2", "osrm", "own", 0.4),
            ("s1", "osrm", "gaussian", 0.9), ("s1", "kaiming", "own", 0.6),
        )
    ]  # fmt: skip
    table = lines(scores(pd.DataFrame(rows)))
    bold = table[best(table).a]
    assert sorted(zip(bold.setup, bold.init, bold["heads"])) == [
        ("s1", "kaiming", "own"), ("s1", "osrm", "gaussian"), ("s1", "osrm", "own"),
        ("s2", "osrm", "own"),
    ]  # fmt: skip


def test_fewest_points_lost_are_best_and_references_never(row, references):
    rows = [row(value=0.7), row("dare", value=0.6, line="l2"), *references({"a": 0.5}, {"a": 0.8})]
    table = lines(scores(pd.DataFrame(rows)))
    bold = best(table)
    assert list(table["merge"][bold.lost]) == list(table["merge"][bold.a]) == ["ties"]


def test_what_knows_nothing_of_a_task_is_not_best(row):
    of = {"metric": "mcc", "task": "b"}
    rows = [row(value=0.7), row("dare", value=0.6, line="l2")]
    rows += [row(value=0.0, degenerate=True, **of), row("dare", value=-0.1, line="l2", **of)]
    bold = best(lines(scores(pd.DataFrame(rows))))
    assert bold.a.sum() == bold.average.sum() == 1 and not bold.b.any()


def test_markdown_survives_a_pipe(row):
    table = lines(scores(pd.DataFrame([row(init="a|b")])))
    line = markdown(table, shown(table)[0]).splitlines()[2]
    assert "a\\|b" in line and "**50.0**" in line


def test_all_formats_are_written(tmp_path, row, references):
    write_rows(tmp_path, "c1", [row(value=0.7), *references({"a": 0.6}, {"a": 0.8})])
    text = write_tables(tmp_path, read_rows(tmp_path), read_rows(tmp_path, "searches"))
    assert "70.0" in text and "protocol: clean" in text and "coefficients chosen on tune" in text
    assert "Bold: " not in text  # which has none
    for name, bold in {"table.md": "**70.0**", "table.tex": r"\textbf{70.0}"}.items():
        assert bold in (said := (tmp_path / name).read_text()) and "Bold: the best merge" in said
    assert "| ties" in (tmp_path / "table.md").read_text()
    frame = pd.read_csv(tmp_path / "table.csv").set_index("merge").loc["ties"]
    assert (frame.a, frame.lost, frame.recovered, frame.kept) == (70, 10, 50, 87.5)
    assert pd.read_csv(tmp_path / "tasks.csv").set_index("merge").loc["ties", "pretrained"] == 60


def test_no_rows_are_said_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="holds no rows yet"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="typo is not a folder"):
        write_report(tmp_path / "typo")


@pytest.mark.parametrize("asked", [["--baseline", "osmr"], ["--published", "typo.csv"]])
def test_what_cannot_be_reported_is_told_before_anything_is_written(row, tmp_path, asked):
    write_rows(tmp_path, "c", [row()])
    command = [sys.executable, "-m", "osrm_exp.report", str(tmp_path), *asked]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 1 and done.stderr.startswith("osrm_exp: ") and not done.stdout
    assert done.stderr.count("\n") == 1 and not (tmp_path / "table.md").exists()


def test_the_number_of_lines_costs_no_passes_over_the_rows(row, monkeypatch):
    def passes(inits):
        frame = pd.DataFrame([row(init=f"i{i}", line=f"l{i}", task=t) for i in inits for t in "ab"])
        counted, compare = [], pd.Series.__eq__
        monkeypatch.setattr(pd.Series, "__eq__", lambda s, o: counted.append(1) or compare(s, o))
        shown(lines(scores(frame)))
        monkeypatch.setattr(pd.Series, "__eq__", compare)
        return len(counted)

    assert passes(range(3)) == passes(range(60))


def test_diagnostics_become_means_and_figures_beside_the_tables(tmp_path, row):
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
    names = {f.name for f in (tmp_path / "figures").iterdir()}
    assert names == {"README.md", "tasks.svg", "interference_query.svg", "layers_query.svg"}


def test_a_table_names_what_no_commit_pins(tmp_path, row):
    write_rows(tmp_path, "c", [row(unpinned=["owner/model", "owner/data@main:a"])])
    write_rows(tmp_path, "d", [row("dare", line="l2")])  # of before rows said so
    assert "it may move: owner/data@main:a, owner/model." in write_report(tmp_path, draw=False)
    assert "owner/model" in (tmp_path / "table.md").read_text()
    assert "owner/model" in (tmp_path / "table.tex").read_text().replace("\\_", "_")
    pinned = tmp_path / "pinned"
    write_rows(pinned, "c", [row(unpinned=[])])
    assert "pinned" not in write_report(pinned, draw=False)
