"""No module of a result is computed twice on the way from a cell to its rows."""

from collections import Counter

import pytest

from osrm_exp import pipeline
from osrm_exp.lazy import Lazy


@pytest.mark.parametrize("merge", ["ties", "emr", "tall_mask", "doge_ta", "ctm_ta"])
def test_a_module_is_computed_once(cell, workshop, monkeypatch, merge):
    computed: Counter[str] = Counter()
    compute = Lazy.__getitem__

    def counted(self, name: str):
        computed[name] += 1
        return compute(self, name)

    monkeypatch.setattr(Lazy, "__getitem__", counted)
    steps = ["merge.iterations=2"] if merge == "doge_ta" else []
    chosen = cell(
        "roberta", f"merge={merge}", "dataset.only=[cola,stsb]", "tuning.epochs=1", *steps
    )
    rows = pipeline.run(chosen, workshop).rows
    own = {m: times for m, times in computed.items() if m.startswith("roberta.")}
    assert len(own) == 4 and set(own.values()) == {1}  # beside the rehearsal's, on another network
    assert (rows[0]["truncation_error"] is None) == (merge != "ctm_ta")
