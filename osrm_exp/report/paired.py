"""Arms against a baseline arm, task by task and seed by seed: what a table of averages cannot say.

Two arms of one seed see the same rows in the same order and start from the same heads, so their
difference has less noise than either score. `python -m osrm_exp.report DIR INIT` prints it.
"""

import pandas as pd
from scipy.stats import t

PAIR = ["setup", "merge", "space", "settings", "seed", "task"]
LEVEL = 0.95


def paired(rows: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Every other init minus `baseline`, by merge, in points of the headline metric.

    The unit is a task: differences are averaged over seeds first. `low` and `high` bound the mean
    over tasks at 95 % (Student's t), as if the tasks were drawn from many. They hold the noise of
    training and of validation rows as far as it differs between tasks, and do not correct for how
    many arms are compared. A searched coefficient is part of an arm: each has its own.

    Returns:
        `merge, init, difference, low, high, better, worse, tasks, seeds`, one line an arm and
        merge; `better` and `worse` count tasks.

    Raises:
        ValueError: no such init, or two cells of one arm that nothing tells apart.
    """
    rows = rows[rows.headline].copy()
    if baseline not in set(rows.init):
        raise ValueError(f"no rows of init {baseline!r}; there are: {', '.join(set(rows.init))}")
    rows["settings"] = [_given(*s) for s in zip(rows.settings, rows.chosen)]
    if rows.duplicated([*PAIR, "init"]).any():
        raise ValueError("two cells of one init differ by neither merge, settings nor seed")
    wide = rows.pivot(index=PAIR, columns="init", values="value") * 100
    gains = wide.drop(columns=baseline).sub(wide[baseline], axis=0)
    gains = gains.melt(value_name="gain", ignore_index=False).dropna().reset_index()
    found = [
        {"merge": merge, "init": init, **_summary(group)}
        for (merge, init), group in gains.groupby(["merge", "init"])
    ]
    return pd.DataFrame(found)


def _summary(gains: pd.DataFrame) -> dict:
    a_task = gains.groupby("task").gain.mean()
    count = len(a_task)
    half = t.ppf((1 + LEVEL) / 2, count - 1) * a_task.sem() if count > 1 else float("nan")
    mean = a_task.mean()
    return {
        "difference": mean, "low": mean - half, "high": mean + half,
        "better": int((a_task > 0).sum()), "worse": int((a_task < 0).sum()),
        "tasks": count, "seeds": gains.seed.nunique(),
    }  # fmt: skip


def _given(settings: dict, chosen: dict) -> str:
    """The settings that were given, not searched."""
    return repr({k: v for k, v in sorted(settings.items()) if k not in chosen})


def paired_text(rows: pd.DataFrame, baseline: str) -> str:
    """`paired` as Markdown."""
    table = paired(rows, baseline)
    interval = [f"{low:+.1f} … {high:+.1f}" for low, high in zip(table.low, table.high)]
    table = table.assign(difference=table.difference.map("{:+.1f}".format))
    table.insert(3, "95 % interval", interval)
    table = table.drop(columns=["low", "high"]).rename(columns={"init": f"init − {baseline}"})
    foot = (
        "Points of the headline metric, paired by task and seed, mean over tasks; the interval is "
        "over tasks and not corrected for the number of arms."
    )
    return f"{table.to_markdown(index=False, disable_numparse=True)}\n\n{foot}"
