"""What README promises a contributor, done as it is printed, in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from osrm_exp import needs, pipeline
from osrm_exp.report.rows import rows_in

ROOT = Path(__file__).parents[1]
PARTS = ("osrm_exp", "conf", "docs", "tests", "README.md", "pyproject.toml")
FILE = re.compile(r"`([\w/]+\.\w+)`[^\n]*:\n\n```\w+\n(.*?)```", flags=re.DOTALL)
COMMAND = re.compile(r"```bash\n(.*?)```", flags=re.DOTALL)


def section(title: str) -> str:
    return (ROOT / "README.md").read_text().partition(f"## {title}")[2].partition("\n## ")[0]


@pytest.fixture
def copy(tmp_path) -> Path:
    """The repository without its results."""
    for part in PARTS:
        into = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        into(ROOT / part, tmp_path / part)
    return tmp_path


def run(command: str, cwd: Path) -> str:
    """What a command of the page prints, with this Python in place of the one it names."""
    command = re.sub(r"(^|\s)python ", rf"\1{sys.executable} ", command)
    done = subprocess.run(
        command, shell=True, cwd=cwd, capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": str(cwd)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_within_the_repository_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    assert page == "CHANGELOG.md" or links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_a_method_is_added_as_printed(copy, checkpoints, suite):
    text = section("Add a merge method")
    files, (command,) = dict(FILE.findall(text)), COMMAND.findall(text)
    assert len(files) == 2
    for name, content in files.items():
        assert not (copy / name).exists()
        (copy / name).write_text(content)
    module, _ = files
    run(f"python -m ruff check {module} && python -m ruff format --check {module}", copy)
    assert re.search(r"\d{2,} passed", run(command, copy))
    assert "| `biggest` |" in (copy / "docs" / "methods.md").read_text()
    run(
        "python -m osrm_exp model=roberta_large dataset=glue 'dataset.only=[cola,sst2]' "
        f"model.path={checkpoints['roberta']} dataset.path={suite} protocol.holdout=0.2 "
        "tuning.epochs=1 tuning.max_length=32 merge=biggest search=grid",
        copy,
    )
    (cell,) = copy.glob("results/*/rows/*.jsonl")
    rows = rows_in(cell)
    assert {row["merge"] for row in rows} == {"biggest"}
    assert {row["task"] for row in rows} == {"cola", "sst2"}


def test_an_evaluation_runs_as_printed(cell, workshop, checkpoints, suite, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", section("Use it"), flags=re.DOTALL)
    (block,) = (one for one in blocks if "evaluate(" in one)
    assert len(block.splitlines()) <= 12
    chosen = cell("roberta", "dataset.only=[cola,mnli]", "tuning.epochs=1", "merge=knots_ties",
                  "merge.scaling=0.6")  # fmt: skip
    rows = pipeline.run(chosen, workshop).rows
    (tmp_path / "adapters").mkdir()
    for one in needs.fine_tunes(chosen):
        (tmp_path / "adapters" / one.task.name).symlink_to(workshop.store.folder(one))
    (tmp_path / "checkpoint").symlink_to(checkpoints["roberta"])
    (tmp_path / "rows").symlink_to(suite)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(block, found)
    assert found["scores"]["cola"]["mcc"] == next(r["value"] for r in rows if r["metric"] == "mcc")
    with pytest.raises(ValueError, match="qqqp"):
        found["evaluate"](found["merged"], {"qqqp": "x"}, model="roberta_large", suite="glue")
