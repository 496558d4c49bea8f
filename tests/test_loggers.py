import pytest

from osrm_exp.loggers import public


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("model.path=/somewhere/my model", "model.path=(local)"),
        ("~/x", "(local)"),
        ("~me/x", "(local)"),
        ("../x", "(local)"),
        ("+dataset.tasks={cola: {path: '/somewhere'}}", "+dataset.tasks={cola: {path: '(local)"),
        ("hf_abcdefghijklmnop", "(secret)"),
        ("model.path=FacebookAI/roberta-large", "model.path=FacebookAI/roberta-large"),
        ("org/name@main", "org/name@main"),
        ("layer.*.output.dense", "layer.*.output.dense"),
        (0.5, 0.5),
        (None, None),
    ],
)
def test_what_is_of_this_machine_alone_is_not_logged(value, shown):
    assert public({"a": [value]}) == {"a": [shown]}


def test_a_relative_folder_is_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "some" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public("model.path=some/folder") == "model.path=(local)"
