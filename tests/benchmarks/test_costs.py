"""What is timed beside each other computes the same."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import costs


def test_core_space_as_released_is_ours():
    given = costs.adapters(4, 2, 48)
    ours, theirs = costs.method("core_ties", given, lift=True)(), costs.released(given, lift=True)()
    assert (ours - theirs).norm() < 1e-4 * ours.norm()


def test_a_bar_is_a_least_or_a_most():
    assert costs.row("a", "-", 1.0, "b", 4.0, ">=3").endswith("| 4.00 | >=3: pass |")
    assert costs.row("a", "-", 6.0, "b", 1.0, "<=5").endswith("| 6.00 | <=5: FAIL |")
    assert costs.row("a", "-", 6.0, "b", 1.0, "<=").endswith("| 6.00 | - |")
