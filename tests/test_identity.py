import json

import pytest
from omegaconf import OmegaConf

from osrm_exp import CONF
from osrm_exp.identity import identity, unpinned


def of(folder):
    return identity(str(folder), None, "model.path")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_pickled_weights_count_where_they_are_what_is_loaded(folder):
    weights = folder / "pytorch_model.bin"
    weights.write_text("one")
    first = of(folder)
    weights.write_text("other")
    assert of(folder) != first
    (folder / "model.safetensors").write_text("safe")
    loaded = of(folder)
    weights.write_text("a third")
    assert of(folder) == loaded


@pytest.mark.parametrize("name", ["tokenizer.model", "merges.txt", "chat_template.jinja"])
def test_everything_that_a_tokenizer_reads_counts(folder, name):
    (folder / "model.safetensors").write_text("safe")
    first = of(folder)
    (folder / name).write_text("one")
    second = of(folder)
    (folder / name).write_text("another")
    assert len({first, second, of(folder)}) == 3


def test_shards_count_wherever_their_index_puts_them(folder):
    (folder / "parts").mkdir()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "parts/1.safetensors"}}))
    with pytest.raises(ValueError, match=r"an index that names 1.safetensors: no file"):
        of(folder)
    shard = folder / "parts" / "1.safetensors"
    shard.write_text("one")
    first = of(folder)
    shard.write_text("other")
    assert of(folder) != first
    index.write_text("[]")
    with pytest.raises(ValueError, match="no index of shards"):
        of(folder)


def test_a_folder_of_nothing_is_refused(tmp_path, folder):
    with pytest.raises(ValueError, match=r"holds no weights that can be loaded"):
        of(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="holds no file that can be read"):
        of(folder)


def test_a_hub_id_without_a_commit_is_told_apart():
    commit = "722cf37b1afa9454edce342e7895e588b6ff1d59"
    for revision in (None, "main", "v1.0", "refs/pr/3"):
        assert unpinned(identity("owner/model", revision, "model.path"))
    for revision in (commit, commit[:7]):
        found = identity("owner/model", revision, "model.path")
        assert not unpinned(found) and not unpinned(f"{found}:cola")
    assert unpinned("owner/data@main:cola") and unpinned("owner/data:cola")
    assert not unpinned("998c5fbdc1e19541") and not unpinned("generated@1:sentiment")


@pytest.mark.parametrize("group", ["model", "dataset"])
def test_what_is_named_by_a_config_is_pinned_by_it(group):
    """But for the Llama that has no path of its own."""
    hub = {}
    for file in sorted((CONF / group).glob("*.yaml")):
        config = OmegaConf.load(file)
        path = OmegaConf.to_container(config, resolve=False).get("path")
        if path and "/" in path and path != "???":
            name = path.rstrip("}").rpartition(",")[2]  # behind an installed package's folder
            hub[file.stem] = unpinned(f"{name}@{config.revision}")
    assert hub and not any(hub.values()), hub
