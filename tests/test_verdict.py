"""The verdict's page says what its rows say: a sample of its numbers, computed another way."""

import importlib.util
import json
import re
import statistics
from pathlib import Path

import pytest
from scipy.stats import t

FOLDER = Path(__file__).parents[1] / "results" / "verdict"


def rows_of(part):
    files = sorted((FOLDER / part / "rows").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()[:-1]]


ROWS, MORE = rows_of("main"), rows_of("secondary")
HEADLINES = [row for row in ROWS + MORE if row["headline"] and row["init"] != "head_only"]
NUMBERS = json.loads((FOLDER / "numbers.json").read_text())
PAGE = (FOLDER / "README.md").read_text()


def average(init, merge, seed, heads="own", rows=HEADLINES, tasks=5):
    found = [
        row["value"] for row in rows
        if (row["init"], row["merge"], row["seed"], row["heads"]) == (init, merge, seed, heads)
    ]  # fmt: skip
    assert len(found) == tasks
    return 100 * sum(found) / tasks


def gains_of(arm, baseline, merge, seeds, rows=HEADLINES, tasks=5):
    """By seed, in points, mean over tasks."""
    of = {"rows": rows, "tasks": tasks}
    return [average(arm, merge, s, **of) - average(baseline, merge, s, **of) for s in seeds]


def said_of(gains):
    """What a table of the page says of differences: their mean and its 95 % interval."""
    mean, n = statistics.mean(gains), len(gains)
    half = t.ppf(0.975, n - 1) * statistics.stdev(gains) / n**0.5
    interval = re.escape(f"{mean - half:+.1f} … {mean + half:+.1f}")
    return rf"{re.escape(f'{mean:+.1f}')} +\| {interval}"


@pytest.mark.parametrize(
    "line", NUMBERS["primaries"], ids=lambda x: f"{x['baseline']}-{x['merge']}"
)
def test_a_primary_comparison_is_that_of_the_rows(line):
    gains = gains_of("osrm", line["baseline"], line["merge"], NUMBERS["seeds"])
    mean, sd, n = statistics.mean(gains), statistics.stdev(gains), len(gains)
    half = t.ppf(0.975, n - 1) * sd / n**0.5
    assert line["seeds"] == n and line["tasks"] == 5
    found = [line[key] for key in ("difference", "low", "high", "sd")]
    assert found == pytest.approx([mean, mean - half, mean + half, sd], abs=1e-3)
    shown = rf"osrm − {line['baseline']} +\| {line['merge']} +\| +{re.escape(f'{mean:+.1f}')} +\|"
    assert re.search(shown, PAGE)
    assert f"{mean - half:+.1f} … {mean + half:+.1f}" in PAGE


def test_the_table_of_averages_is_that_of_the_rows():
    for init in ("kaiming", "orthonormal_tied", "osrm"):
        mean = {
            merge: statistics.mean(average(init, merge, s) for s in NUMBERS["seeds"])
            for merge in ("pretrained", "individual", "regmean")
        }  # fmt: skip
        cells = [f"{mean[key]:.1f}" for key in ("pretrained", "individual", "regmean")]
        lost = f"{mean['individual'] - mean['regmean']:.1f}"
        assert re.search(rf"\| regmean +\| {init} .*" + r" +\| +".join([*cells, lost]), PAGE)


def test_every_verdict_follows_from_its_p_values_by_the_plan():
    level = NUMBERS["level"]
    assert level == (0.04 if len(NUMBERS["seeds"]) >= 10 else 0.01)
    assert len(NUMBERS["primaries"]) == 8
    for line in NUMBERS["primaries"]:
        assert ("undecided" in line["verdict"]) == (
            line["p_holm"] >= level and line["p_equivalent_holm"] >= level
        )
    for name, verdict in NUMBERS["verdicts"].items():
        assert re.search(rf"{name} \([^)]*\): {re.escape(verdict)}", PAGE)


def test_a_seed_counts_when_all_its_cells_are_there():
    spec = importlib.util.spec_from_file_location("analysis", FOLDER / "analysis.py")
    analysis = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(analysis)
    import pandas as pd

    rows = pd.DataFrame(ROWS)
    kept = analysis.whole(rows)
    assert sorted(kept.seed.unique()) == NUMBERS["seeds"]
    one = kept.cell.iloc[0]
    assert kept[kept.cell == one].seed.iloc[0] not in set(
        analysis.whole(rows[rows.cell != one]).seed
    )


@pytest.mark.parametrize(
    ("arm", "baseline"),
    [("osrm", "gaussian"), ("osrm_released", "osrm"), ("contrastive", "osrm")],
)
@pytest.mark.parametrize("merge", ["task_arithmetic", "regmean"])
def test_a_secondary_comparison_is_that_of_the_rows(arm, baseline, merge):
    gains = gains_of(arm, baseline, merge, sorted({row["seed"] for row in MORE}))
    assert re.search(rf"{arm} − {baseline} +\| {merge} +\| +{said_of(gains)}", PAGE)


def test_the_map_of_heads_and_deltas_is_that_of_the_rows():
    arms = ["kaiming", "orthonormal_tied", "osrm"]
    rows = [*HEADLINES, *(row for row in rows_of("heads") if row["headline"])]
    for deltas in arms:
        cells = []
        for heads in [*arms, "head_only"]:
            own = "own" if heads == deltas else heads
            found = [row["value"] for row in rows if row["merge"] == "regmean"
                     and (row["init"], row["heads"]) == (deltas, own)]  # fmt: skip
            assert len(found) == 50  # five tasks, ten seeds
            cells.append(f"{100 * statistics.mean(found):.1f}")
        assert re.search(rf"\| {deltas} +\| +" + r" \| +".join(cells) + r" \|", PAGE)


def test_the_confirmation_is_that_of_its_rows_and_of_the_rule():
    rows = [r for r in rows_of("confirmation") if r["headline"] and r["heads"] == "own"]
    seeds = sorted({row["seed"] for row in rows if row["init"] == "contrastive"})
    assert len(seeds) >= 5 and set(seeds).isdisjoint(NUMBERS["seeds"])
    p = {}
    for merge in ("task_arithmetic", "ties", "regmean"):
        means = {
            (init, seed): 100 * statistics.mean(
                row["value"] for row in rows
                if (row["init"], row["merge"], row["seed"]) == (init, merge, seed)
            ) for init in ("contrastive", "kaiming") for seed in seeds
        }  # fmt: skip
        gains = [means["contrastive", seed] - means["kaiming", seed] for seed in seeds]
        mean, error = statistics.mean(gains), statistics.stdev(gains) / len(gains) ** 0.5
        p[merge] = 2 * t.sf(abs(mean / error), len(gains) - 1)
        assert re.search(rf"\| {merge} +\| +{re.escape(f'{mean:+.1f}')} +\|", PAGE)
        assert mean > 0
    assert 3 * min(p.values()) < 0.05 and min(p, key=p.__getitem__) == "regmean"
    assert "H3 (contrastive − kaiming): supported" in PAGE


FURTHER = {
    "MiniLM, seven GLUE tasks": ("replication", 7), "MPNet, the five text tasks": ("scale", 5),
}  # fmt: skip


@pytest.mark.parametrize("title", FURTHER)
@pytest.mark.parametrize("baseline", ["orthonormal_tied", "kaiming"])
def test_a_further_part_is_that_of_its_rows_and_of_the_rule(title, baseline):
    part, tasks = FURTHER[title]
    rows = [row for row in rows_of(part) if row["headline"]]
    text = PAGE.partition(f"#### {title}")[2].partition("####")[0]
    seeds = [int(s) for s in re.search(r"Seeds ([\d, ]+);", text)[1].split(",")]
    assert len(seeds) >= 3
    verdicts = re.findall(rf"\| osrm − {baseline} .*\| ([a-z, ±1]+?) *\|", text)
    assert len(verdicts) == 4
    for merge in ("average", "task_arithmetic", "ties", "regmean"):
        gains = gains_of("osrm", baseline, merge, seeds, rows, tasks)
        assert re.search(rf"osrm − {baseline} +\| {merge} +\| {said_of(gains)}", text)
    said = re.search(rf"\(osrm − {baseline}\): ([^.]+)\.", text)[1]
    assert (said == "undecided") == all("supported" not in v and "refuted" not in v
                                        for v in verdicts)  # fmt: skip


def test_what_the_row_norm_is_worth_is_that_of_the_rows():
    short, own = "gaussian row_norm=1", rows_of("row_norm")
    rows = HEADLINES + [row for row in own if row["headline"]]
    text = PAGE.partition("#### Row norm")[2]
    for arm, baseline in (("osrm", short), (short, "gaussian")):
        for merge in ("average", "task_arithmetic", "ties", "regmean"):
            gains = gains_of(arm, baseline, merge, sorted({row["seed"] for row in own}), rows)
            assert re.search(rf"{arm} − {baseline} +\| {merge} +\| {said_of(gains)}", text)
