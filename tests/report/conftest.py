"""Rows as a cell writes them, of as many cells as a test asks for."""

import pytest


@pytest.fixture
def row():
    """`row(merge, task, value, …)`: one headline row; any key can be given."""

    def made(merge="ties", task="a", value=0.5, seed=1, line="l1", setup="s1", **other):
        return {
            "experiment": "x", "model": "m", "dataset": "d", "tuning": "t", "protocol": "clean",
            "init": "gaussian", "merge": merge, "space": "delta", "chosen": {},
            "settings": {"scaling": 0.3, "density": 0.2}, "tuned_on": "tune", "seed": seed,
            "task": task, "split": "validation", "metric": "accuracy", "value": value,
            "headline": True, "degenerate": False, "output": "shared, dense", "schema": 2,
            "adapters": [f"{setup}-{seed}"], "setup": setup, "line": line,
            "cell": f"{line}-{seed}", "seconds": 1.0, **other,
        }  # fmt: skip

    return made


@pytest.fixture
def references(row):
    """The rows of `pretrained` and `individual` for every task, with 400 rows and floors."""

    def made(bare, single, seed=1, **other):
        found = []
        for merge, values in {"pretrained": bare, "individual": single}.items():
            output = "per_task, lowrank 8" if merge == "individual" else "shared, lowrank 0"
            key = {"line": merge, "settings": {}, "output": output, "seed": seed, "rows": 400}
            found += [
                row(merge, task, value, **{"floor": 0.5, **key, **other})
                for task, value in values.items()
            ]
        return found

    return made
