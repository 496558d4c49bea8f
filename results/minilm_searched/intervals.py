"""What leads by more than its interval: `python results/minilm_searched/intervals.py`.

Writes `intervals.md` from rows and predictions: every merge of the same four adapters against
three of them, mean over tasks, with the 95 % interval over redrawn validation rows. It is
conditional on these adapters and on what each search chose: a second seed would widen it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from osrm_exp.report.bootstrap import redrawn
from osrm_exp.report.predictions import read_predictions
from osrm_exp.report.rows import read_rows
from osrm_exp.report.scores import scores

HERE = Path(__file__).parent
BESIDE = ["average", "task_arithmetic", "regmean"]  # nothing seen, one number chosen, inputs seen


def table() -> pd.DataFrame:
    """One line a merge, best first: average, seconds, and a difference from each of `BESIDE`."""
    found = scores(read_rows(HERE))
    answers = dict(iter(read_predictions(HERE, found.cell.unique()).groupby("cell")))
    cells = found.groupby("merge", sort=False)
    lines = [
        {
            "merge": name,
            "data": ", ".join(cell.data.iloc[0]) or "none",
            "seconds": f"{_seconds(cell.iloc[0]):.1f}",
            "average": f"{cell.value.mean():.1f}",
            **{f"− {one}": _difference(cell, cells.get_group(one), answers) for one in BESIDE},
        }
        for name, cell in cells
    ]
    return pd.DataFrame(sorted(lines, key=lambda line: -float(line["average"])))


def _seconds(first: pd.Series) -> float:
    """Of the search and of one merge."""
    searched = first.search if isinstance(first.search, dict) else {}
    return searched.get("seconds", 0.0) + first.merge_seconds


def _difference(arm: pd.DataFrame, base: pd.DataFrame, answers: dict[str, pd.DataFrame]) -> str:
    """`mean (low … high)`, in points."""
    if arm.cell.iloc[0] == base.cell.iloc[0]:
        return ""
    pairs = arm[["seed", "task", "metric", "cell"]].merge(
        base[["task", "cell", "value"]].rename(columns={"cell": "base"}), on="task"
    )
    low, high = np.quantile(redrawn(pairs, answers).mean(axis=(0, 1)), [0.025, 0.975])
    return f"{arm.value.mean() - base.value.mean():+.1f} ({low:+.1f} … {high:+.1f})"


def main() -> None:
    text = table().to_markdown(index=False, stralign="left", disable_numparse=True)
    (HERE / "intervals.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
