import json

import pytest

from osrm_exp.report.rows import read_rows, rows_file, write_rows


def test_rows_come_back(tmp_path):
    rows = [{"task": "a", "value": 0.5, "settings": {"scaling": 0.3}}]
    assert write_rows(tmp_path, "abc", rows) == rows_file(tmp_path, "abc")
    assert read_rows(tmp_path).to_dict("records") == rows


def test_a_failure_in_the_middle_leaves_no_file(tmp_path):
    def rows():
        yield {"task": "a"}
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_rows(tmp_path, "abc", rows())
    assert list((tmp_path / "rows").iterdir()) == []


def test_a_damaged_file_is_named(tmp_path):
    write_rows(tmp_path, "abc", [{"a": 1}])
    rows_file(tmp_path, "abc").write_text(json.dumps({"a": 1})[:-2])
    with pytest.raises(ValueError, match=r"abc\.jsonl is damaged"):
        read_rows(tmp_path)
