import pandas as pd
import pytest

from osrm_exp.report.predictions import read_predictions, write_predictions


@pytest.fixture
def answers():
    tasks = ["sst2"] * 40 + ["stsb"] * 40
    return pd.DataFrame(
        {"task": tasks, "row": [*range(40)] * 2, "label": [i % 2 * 1.0 for i in range(80)],
         "prediction": [i / 80 for i in range(80)]}
    )  # fmt: skip


def test_predictions_come_back_for_the_cells_that_left_any(tmp_path, answers):
    write_predictions(tmp_path, "abc", answers.to_dict("records"))
    found = read_predictions(tmp_path, ["abc", "never"])
    assert set(found.cell) == {"abc"} and found[answers.columns].equals(answers)
    assert read_predictions(tmp_path, ["never"]).empty


def test_a_damaged_file_is_named(tmp_path, answers):
    file = write_predictions(tmp_path, "abc", answers.to_dict("records"))
    whole = file.read_bytes()
    for place in (40, len(whole) // 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"abc\.parquet is damaged"):
            read_predictions(tmp_path, ["abc"])
    file.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"abc\.parquet is damaged"):
        read_predictions(tmp_path, ["abc"])


def test_the_same_predictions_are_the_same_file(tmp_path, answers):
    files = [
        write_predictions(tmp_path, name, answers.to_dict("records")) for name in ("one", "two")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
