"""Every experiment composes, every cell of it passes the checks that need no weights."""

import itertools

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import OmegaConf

from osrm_exp import CONF
from osrm_exp.record import build
from osrm_exp.spec import Merge

FOLDER = CONF / "experiment"
EXPERIMENTS = sorted(
    str(file.relative_to(FOLDER).with_suffix("")) for file in FOLDER.rglob("*.yaml")
    if file.parent.name != "paper"  # test_paper
)  # fmt: skip
FILES = sorted(p for p in CONF.rglob("*.yaml") if p.name != "config.yaml")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes_with_every_choice_of_its_sweep(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        swept = compose("config", [f"+experiment={name}"], return_hydra_config=True)
        params = swept.hydra.sweeper.params or {}
        points = [[f"{k}={v}" for v in str(values).split(",")] for k, values in params.items()]
        for axis in points:
            for choice in axis:
                config = compose(
                    "config", [f"+experiment={name}", choice], return_hydra_config=True
                )
                HydraConfig.instance().set_config(config)
                assert config.study == name.replace("/", "_")
                build(Merge, OmegaConf.to_container(config.merge, resolve=True), "merge").check()
    assert len(list(itertools.product(*points))) >= 1


@pytest.mark.parametrize("file", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_target_resolves_and_every_file_says_what_it_is(file):
    assert file.read_text().startswith("# ")

    def targets(node):
        if isinstance(node, dict):
            if node.get("_target_"):
                yield node["_target_"]
            for value in node.values():
                yield from targets(value)

    for target in targets(OmegaConf.to_container(OmegaConf.load(file))):
        assert callable(get_object(target))
