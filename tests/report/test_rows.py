import pytest

from osrm_exp.report.rows import is_done, read_rows, rows_file, write_rows

ROWS = [{"task": t, "value": 0.5, "schema": 2, "settings": {"scaling": 0.3}} for t in "abc"]


@pytest.fixture
def file(tmp_path):
    return write_rows(tmp_path, "abc", ROWS)


def test_rows_come_back(tmp_path, file):
    assert file == rows_file(tmp_path, "abc") and is_done(file)
    assert read_rows(tmp_path).to_dict("records") == ROWS


def test_candidates_are_kept_beside_the_rows(tmp_path, file):
    tried = [{"cell": "abc", "point": {"scaling": s}, "score": s / 2, "split": "tune"}
             for s in (0.3, 0.6)]  # fmt: skip
    write_rows(tmp_path, "abc", tried, "searches")
    assert read_rows(tmp_path, "searches").to_dict("records") == tried
    assert len(read_rows(tmp_path)) == 3
