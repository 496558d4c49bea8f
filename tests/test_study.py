import pytest
from hydra import initialize_config_dir

from osrm_exp import CONF
from osrm_exp.compose import configuration
from osrm_exp.study import check_study


def test_an_experiment_on_another_model_has_a_folder_of_its_own():
    other = ("+experiment=minilm_glue", "model=roberta_large")
    config = configuration(other)
    said = r"of model=minilm.*model=roberta_large.*study="
    with (
        initialize_config_dir(str(CONF), version_base="1.3"),
        pytest.raises(ValueError, match=said),
    ):
        check_study(config)  # as in a job
    for fine in [("model=minilm",), ("study=mine", other[1]), ("paths.results=x", other[1])]:
        check_study(configuration((other[0], *fine)))
    mine = configuration((other[0], "study=mine"))
    assert mine["study"] == "mine" and mine["paths"]["results"] == "results/mine"
