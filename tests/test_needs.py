import pytest

from osrm_exp import needs


def test_an_init_asks_for_the_others_data_or_for_its_own(cell):
    for chosen in needs.fine_tunes(cell("roberta", "init=osrm")):
        assert not chosen.own
        assert chosen.task.name not in {one.task.name for one in chosen.others["others"]}
    both = needs.fine_tunes(cell("roberta", "init=contrastive"))
    assert [one.own["own"].task.name for one in both] == ["cola", "stsb", "mnli"]
    assert len(needs.of_inits(both)) == 3  # one gram a task serves all


def test_one_task_has_no_others(cell):
    with pytest.raises(ValueError, match="init=osrm needs at least two tasks"):
        needs.fine_tunes(cell("roberta", "init=osrm", "dataset.only=[cola]"))


def test_a_merge_asks_for_what_its_config_says(cell):
    regmean = cell("roberta", "merge=regmean")
    tunes = needs.fine_tunes(regmean)
    found = needs.of_merge(regmean, tunes)["gram"]
    assert [one.expert for one in found] == tunes
    plain = cell("roberta", "merge=regmean", "merge.statistics.gram.of=pretrained")
    assert {one.expert for one in needs.of_merge(plain, tunes)["gram"]} == {None}
    assert needs.of_merge(cell("roberta", "merge=lm_cocktail"), tunes) == {}


def test_heads_of_another_arm_are_that_arms_adapters(cell):
    plain, other = cell("roberta", "init=osrm"), cell("roberta", "init=kaiming")
    swapped = cell("roberta", "init=osrm", "heads=kaiming")
    assert needs.heads(plain) == needs.fine_tunes(plain) == needs.fine_tunes(swapped)
    assert needs.heads(swapped) == needs.fine_tunes(other)
    assert swapped.digest != plain.digest and swapped.setup == plain.setup


def test_an_arm_has_its_own_learning_rate_and_the_setup_of_all(cell):
    table = "+tuning.per_init={osrm: {lr: 0.01}}"
    osrm, kaiming = (cell("roberta", f"init={init}", table) for init in ("osrm", "kaiming"))
    assert (osrm.tuning.lr, kaiming.tuning.lr) == (0.01, 3e-3)
    assert osrm.setup == kaiming.setup
    heads = needs.heads(cell("roberta", "init=kaiming", "heads=osrm", table))
    assert heads == needs.fine_tunes(osrm)
    alone = cell("roberta", "init=osrm", "tuning.lr=0.01")
    assert needs.fine_tunes(alone) == needs.fine_tunes(osrm)  # the same adapters, found again


@pytest.mark.parametrize("override", ["heads=nobody", "+tuning.per_init={nobody: {}}"])
def test_an_unknown_arm_is_named(cell, override):
    with pytest.raises(ValueError, match=r"nobody.* is no file of conf/init"):
        cell("roberta", override)
