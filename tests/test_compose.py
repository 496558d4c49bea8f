import pytest

from osrm_exp.compose import cell_from, configuration, sweep
from osrm_exp.identity import identity
from osrm_exp.overrides import readable


def test_the_digest_names_what_changes_numbers(cell):
    base = cell("roberta")
    same = ["trainer=gpu", "paths.store=elsewhere", "logger=wandb"]
    for override in same:
        assert cell("roberta", override).digest == base.digest, override
    other = ["seed=1", "tuning.lr=1", "merge.scaling=0.2", "init=kaiming", "dataset.seed=3",
             "rank=2", "protocol.holdout=0.3", "tuning.precision=bf16"]  # fmt: skip
    digests = {cell("roberta", override).digest for override in other}
    assert len(digests | {base.digest}) == len(other) + 1


def test_seeds_share_a_line_and_nothing_else_does(cell):
    base = cell("roberta")
    assert cell("roberta", "seed=1").line == base.line
    assert cell("roberta", "tuning.lr=1").line != base.line
    assert cell("roberta", "tuning.lr=1").setup != base.setup
    assert cell("roberta", "init=kaiming").setup == base.setup


def test_a_grid_that_is_not_searched_changes_no_digest(cell):
    base = cell("roberta", "merge=ties")
    assert cell("roberta", "merge=ties", "merge.grid={scaling: [9]}").digest == base.digest
    searched = cell("roberta", "merge=ties", "search=grid")
    narrower = cell("roberta", "merge=ties", "search=grid", "merge.grid={scaling: [9]}")
    assert len({base.digest, searched.digest, narrower.digest}) == 3


def test_a_moved_checkpoint_is_the_same_and_a_changed_one_is_not(tmp_path, checkpoints):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in checkpoints["roberta"].iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    first, second = (identity(str(tmp_path / n), None, "model.path") for n in "ab")
    assert first == second == identity(str(checkpoints["roberta"]), None, "model.path")
    config = tmp_path / "b" / "config.json"
    config.write_text(config.read_text() + " ")
    assert identity(str(tmp_path / "b"), None, "model.path") != first


def test_per_task_settings_touch_their_task_alone(configured):
    plain = cell_from(configured("roberta"))
    tuned = cell_from(configured("roberta", "+tuning.per_task.stsb.lr=0.5"))
    assert tuned.tuning.of("stsb").lr == 0.5
    assert tuned.tuning.of("cola").digest == plain.tuning.of("cola").digest
    with pytest.raises(ValueError, match="per_task names 'nope'"):
        cell_from(configured("roberta", "+tuning.per_task.nope.lr=0.5"))
    with pytest.raises(ValueError, match=r"per_task\.stsb\.speed is not an option"):
        cell_from(configured("roberta", "+tuning.per_task.stsb.speed=1")).tuning.of("stsb")


def test_an_intermediate_task_is_part_of_a_digest(cell):
    plain, chosen = cell("roberta"), cell("roberta", "+tuning.per_task.stsb.intermediate=mnli")
    assert chosen.digest != plain.digest and chosen.setup != plain.setup
    assert chosen.tuning.of("mnli").digest == plain.tuning.of("mnli").digest


def test_a_trainer_has_no_option_that_could_change_a_number(configured):
    with pytest.raises(ValueError, match=r"trainer\.precision is not an option.*accelerator"):
        cell_from(configured("roberta", "+trainer.precision=16"))
    alone, several = configured("roberta"), configured("roberta", "trainer=ddp")
    assert several["trainer"]["devices"] == 2
    assert cell_from(several).digest == cell_from(alone).digest


@pytest.mark.parametrize(
    "path", ["a folder", "groß", "a(b)", "a=b", "a#b", "it's ä", "Läufe/großer Speicher (neu)"]
)
def test_a_path_may_be_called_anything(path):
    assert configuration([f"paths.store={path}"])["paths"]["store"] == path
    assert configuration([readable(f"paths.store={path}")])["paths"]["store"] == path


def test_what_hydra_reads_is_left_as_it_is():
    for one in ("seed=1,2", "merge.grid={a: [1]}", "~rank", "-m", "--config-dir=ä", "+a='ä b'"):
        assert readable(one) == one


@pytest.mark.parametrize("key", ["study", "names.init", "names.merge"])
def test_no_name_leads_out_of_its_folder(configured, key):
    with pytest.raises(ValueError, match=rf"{key}: '../../evil' cannot name a file"):
        cell_from(configured("roberta", f"{key}='../../evil'"))


def test_a_spelling_is_no_part_of_an_address(configured):
    plain = configured("roberta", "init=osrm", "merge=ties", "search=grid")
    spelt = configured("roberta", "init=osrm", "merge=ties", "search=grid")
    spelt["merge"] = dict(reversed(spelt["merge"].items())) | {"laws": ["a law"], "neutral": None}
    spelt["merge"]["_target_"] = "osrm_exp.merging.elementwise.ties"
    spelt["init"]["_target_"] = "osrm_exp.inits.functions.osrm"
    del spelt["init"]["row_norm"], spelt["init"]["freeze"]
    spelt["merge"]["scaling"], spelt["merge"]["density"] = 1, 2e-1
    spelt["tuning"]["per_task"] = {"cola": {"lr": spelt["tuning"]["lr"]}, "rte": {"lr": 1}}
    spelt["model"]["blocks"]["unused"] = "somewhere"
    assert cell_from(spelt).digest == cell_from(plain).digest


@pytest.mark.parametrize(
    "override",
    ["+init.version=2", "+merge.version=2", "init.statistics.others.samples=7",
     "init.tie_break=own_energy", "merge.grid.scaling=[1]", "search=none", "merge.density=0.3",
     "+init.statistics.others.version=2"],
)  # fmt: skip
def test_a_changed_option_version_statistic_or_search_is_another_address(cell, override):
    chosen = ("init=osrm", "merge=ties", "search=grid")
    assert cell("roberta", *chosen, override).digest != cell("roberta", *chosen).digest


def test_a_sweep_is_multiplied_out_as_hydra_does():
    cells = list(sweep(["+experiment=minilm_inits", "seed=1,2", "merge=ties"]))
    assert len(cells) == 12 and len(set(cells)) == 12
    assert {one for cell in cells for one in cell if one.startswith("merge=")} == {"merge=ties"}
    assert configuration(cells[0])["seed"] == 1


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["+merge.hook={_target_: os.system}"], "never on a command line"),
        (["merge._target_=os.system"], "never on a command line"),
        (["merge.grid={scaling: 3}", "search=grid"], r"merge\.grid\.scaling.*got 3"),
        (["merge.grid={scaling: []}", "search=grid"], r"merge\.grid\.scaling.*at least 1"),
        (["init=osrm", "+init.statistics.others.of=nobody"], r"others\.of: .*'expert'"),
        (["init=osrm", "init.statistics.others.samples=0"], r"others\.samples"),
        (
            ["dataset.only=../../evil", "+dataset.tasks={../../evil: {text: [a]}}"],
            "cannot name a file",
        ),
        (["study=../evil"], r"study: '\.\./evil' cannot name a file"),
        (["study=/evil"], r"study: '/evil' cannot name a file"),
        (["study=paper/../evil"], r"study: 'paper/\.\./evil' cannot name a file"),
        (["heads=../../evil"], "no file of conf/init"),
    ],
)
def test_what_no_model_is_needed_for_is_refused_at_the_door(configured, overrides, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        cell_from(configured("roberta", *overrides))
    assert "\n" not in str(caught.value)
