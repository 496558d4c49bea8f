import pytest

from osrm_exp.overrides import completed, public

PLACES = [
    "model.path=/srv/me/roberta", "paths.store='/data/großer Speicher'", "dataset.path=~/glue",
    '"paths.results=/a,b"', "+dataset.tasks.rte.adapter=/a/rte@x", "file:///srv/me/conf",
    "+dataset.tasks={cola: {adapter: x}, rte: {adapter:/srv/me/rte}}", "/srv/me/conf",
]  # fmt: skip
KEPT = [
    "dataset.path=../shared/glue", "paths.store=artifacts", "model.path=org/name",
    "+dataset.tasks.say={prompt:'{sentence1} / {sentence2} yes/no'}", "merge.scaling=0.3,0.6",
    "dataset.revision=0123456789012345678901234567890123456789",
]  # fmt: skip


@pytest.mark.parametrize("override", PLACES)
def test_a_place_on_this_machine_is_a_digest(override):
    kept = public(override)
    assert "(local " in kept and "srv" not in kept and "großer" not in kept and "~" not in kept
    assert public(kept) == kept and public(override + "2") != kept
    assert kept.partition("=")[0] == override.partition("=")[0] or "=" not in override


@pytest.mark.parametrize("override", KEPT)
def test_what_says_nothing_of_a_machine_is_kept(override):
    assert public(override) == override


def test_a_token_is_no_part_of_a_row():
    assert public("+model.token=hf_abcdefghijkl") == "+model.token=(secret)"


def test_what_was_kept_back_is_asked_for():
    typed = ["merge=ties", "model.path=/m", "+dataset.x={a:/b}", "paths.logs=/l", "seed=1"]
    row = [public(one) for one in typed]
    with pytest.raises(ValueError, match=r"add model\.path=… dataset\.x=…$"):
        completed(row, ["seed=2"])
    added = ["model.path=/there", "+dataset.x={a:/c}"]
    assert completed(row, added) == ["merge=ties", "seed=1", *added]
