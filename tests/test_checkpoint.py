import json
import shutil

import pytest

from osrm_exp.model import load_backbone, load_tokenizer

EVIL = """
from pathlib import Path
Path({seen!r}).touch()
from transformers import PreTrainedConfig
class Config(PreTrainedConfig):
    model_type = "evil"
"""


@pytest.mark.parametrize("kind", ["evil", "roberta"])
def test_code_that_a_checkpoint_brings_is_not_run(cell, checkpoints, tmp_path, kind):
    folder, seen = tmp_path / "checkpoint", tmp_path / "seen"
    shutil.copytree(checkpoints["roberta"], folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": kind, "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(EVIL.format(seen=str(seen)))
    model = cell("roberta").model.model_copy(update={"path": str(folder)})
    if kind == "evil":
        with pytest.raises(ValueError, match="is not a checkpoint folder"):
            load_backbone(model, 2, precision="fp32")
    else:
        load_tokenizer(model)
        load_backbone(model, 2, precision="fp32")
    assert not seen.exists()
