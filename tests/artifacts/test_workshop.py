import logging

import pytest

from osrm_exp.artifacts import workshop as room


@pytest.mark.parametrize(("times", "precision"), [(60.0, "bf16"), (1.0, "bf16"), (60.0, "fp32")])
def test_bf16_without_units_says_what_it_costs(workshop, monkeypatch, caplog, times, precision):
    monkeypatch.setattr(room, "_slower_in_bf16", lambda: times)
    with caplog.at_level(logging.WARNING, "osrm_exp"):
        workshop.tell_cost(precision)
    said = "bf16: a matrix product takes 60 times as long" in caplog.text
    assert said == (times > 2 and precision == "bf16")


def test_the_cost_is_measured():
    assert room._slower_in_bf16() > 0
