"""A wheel from a clean checkout, installed elsewhere, holds the whole package and runs a cell."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from osrm_exp import CONF, __version__

ROOT = Path(__file__).parents[1]
PARTS = ("osrm_exp", "conf", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def run(*command: object, **options) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=600, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    fresh = shutil.ignore_patterns("__pycache__")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=fresh)
        else:
            shutil.copy(ROOT / part, source / part)
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    run(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", built, source)
    (found,) = built.glob("*.whl")
    return found


def test_a_wheel_holds_every_module_and_config(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        f"osrm_exp/{p.relative_to(ROOT / 'osrm_exp')}" for p in ROOT.glob("osrm_exp/**/*.py")
    }
    configs = {f"osrm_exp/conf/{p.relative_to(CONF)}" for p in CONF.glob("**/*.yaml")}
    assert modules | configs | {"osrm_exp/py.typed"} <= names
    assert {name.partition("/")[0] for name in names} == {
        "osrm_exp",
        f"osrm_exp-{__version__}.dist-info",
    }


def test_an_installed_wheel_runs_a_cell_from_its_own_configs(wheel, checkpoints, suite, tmp_path):
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    elsewhere = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(site)}}
    where = run(sys.executable, "-c", "import osrm_exp; print(osrm_exp.CONF)", **elsewhere)
    assert Path(where.strip()) == site / "osrm_exp" / "conf"
    run(
        site / "bin" / "osrm-exp", "model=roberta_large", f"model.path={checkpoints['roberta']}",
        "dataset=glue", "dataset.only=[cola,sst2]", f"dataset.path={suite}", "tuning.epochs=1",
        "tuning.max_length=32", "merge=average", "protocol.holdout=0.2", **elsewhere,
    )  # fmt: skip
    assert len(list(tmp_path.glob("results/scratch/rows/*.jsonl"))) == 1
