import json
import logging

import pytest

from osrm_exp.report.rows import is_done, read_rows, rows_file, write_rows

ROWS = [{"task": t, "value": 0.5, "schema": 2, "settings": {"scaling": 0.3}} for t in "abc"]


@pytest.fixture
def file(tmp_path):
    return write_rows(tmp_path, "abc", ROWS)


def test_rows_end_in_their_count_and_checksum(file):
    end = json.loads(file.read_text().splitlines()[-1])
    assert end["rows"] == 3 and len(end["sha256"]) == 64


def test_a_failure_in_the_middle_leaves_no_file(tmp_path):
    def rows():
        yield {"task": "a"}
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_rows(tmp_path, "abc", rows())
    assert list((tmp_path / "rows").iterdir()) == []
    assert not is_done(rows_file(tmp_path, "abc"))


def test_a_file_cut_anywhere_is_not_done_and_is_named(tmp_path, file, caplog):
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with caplog.at_level(logging.WARNING, "osrm_exp"):
            assert not is_done(file), size
        with pytest.raises(ValueError, match=r"abc\.jsonl is damaged"):
            read_rows(tmp_path)
    assert len(caplog.messages) == len(whole) and "abc.jsonl is damaged" in caplog.messages[0]


def test_any_other_byte_is_seen(tmp_path, file):
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert not is_done(file), place


@pytest.mark.parametrize("damage", ["duplicate", "swap", "drop", "junk"])
def test_rows_are_those_that_were_written(tmp_path, file, damage):
    a, b, c, end = file.read_bytes().splitlines(keepends=True)
    files = {"duplicate": [a, a, b, c, end], "swap": [b, a, c, end], "drop": [a, b, end],
             "junk": [a, b"3\n", c]}  # fmt: skip
    file.write_bytes(b"".join(files[damage]))
    assert not is_done(file)
    with pytest.raises(ValueError, match="damaged"):
        read_rows(tmp_path)


def test_rows_of_the_first_schema_need_no_trailer(tmp_path):
    old = rows_file(tmp_path, "old")
    old.parent.mkdir()
    old.write_text('{"task": "a"}\n{"task": "b"}\n')
    assert is_done(old) and list(read_rows(tmp_path).task) == ["a", "b"]
    old.write_text('{"task": "a"}\n{"tas')
    assert not is_done(old)
