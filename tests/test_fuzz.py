"""400 command lines that nobody means: each is refused in one sentence, before any model is loaded.

They go the way of a job, by Hydra's own parser, `cell_from` and `pipeline.run`, up to the first
checkpoint that would be loaded, which counts as accepted. What is `wrong` must be refused before;
what is merely `odd` may be accepted.
"""

import copy
import random

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from osrm_exp import bench, model, pipeline, preflight
from osrm_exp.artifacts import start, statistic
from osrm_exp.compose import cell_from

REFUSED = (ValueError, HydraException, OmegaConfBaseException)
BASES = [
    ("merge=ties", "init=osrm", "search=grid"),
    ("merge=dare", "init=contrastive", "search=grid"),
    ("merge=fisher", "init=gaussian"),
    ("merge=tsv", "init=lora_null"),
]
NUMBERS = """tuning.lr tuning.epochs tuning.batch_size tuning.weight_decay tuning.warmup
tuning.max_length tuning.lora.r tuning.lora.lora_alpha tuning.lora.lora_dropout seed
protocol.holdout rank""".split()
RANGES = {
    "tuning.lr": "-1 0 nan inf", "tuning.epochs": "0 -3 1.5", "tuning.batch_size": "0 -1 2.5",
    "tuning.weight_decay": "-0.1 nan inf", "tuning.warmup": "1 -0.1 2 nan", "rank": "0 -4 0.5",
    "tuning.max_length": "0 -1 100000", "tuning.lora.r": "0 -1 1000 1e30", "seed": "1.5 null",
    "tuning.lora.lora_alpha": "0 -8 inf nan", "tuning.lora.lora_dropout": "1 -0.5 7",
    "protocol.holdout": "1 -0.1 0", "tuning.dropout": "1 -1", "tuning.clip": "0 -1 inf",
    "dataset.rows.train": "0 -1 0.5", "dataset.cap.validation": "0 x",
}  # fmt: skip
NAMES = {
    "dataset.only": "[nope] [] [cola,cola] 7 {a:1} ['']", "tuning.lora.blocks": "[nope] [] 3 {a:1}",
    "tuning.precision": "fp8 1 null", "tuning.truncation_side": "up null", "search": "{a:1}",
    "protocol.select": "test null", "protocol.name": "mine", "model.attention": "flash",
    "dataset.tasks.cola.headline": "bleu null 1", "dataset.tasks.cola.text": "[] [a,b,c] null 3",
    "dataset.tasks.cola.labels": "[] [one] 3 {a:1}", "dataset.tasks.cola": "3 [] [a]",
    "model.heads": "[nope] [roberta] 3 {a:1}", "model.blocks.q": "nope [] {a:1} ''",
    "heads": "nope [] 3 ../x",
    "model.path": "/nowhere a/b/c '~/nowhere/at/all' ''", "trainer.accelerator": "tpu null 2",
    "study": "../evil a/../../b '' . .hidden {a:1}", "init.row_norm": "nope {a:1}",
    "init.freeze": "C 1", "names": "3 {init:1}", "overrides": "3 [1]", "paths": "null 3 {a:1}",
    "+tuning.per_task.cola": "{speed:1} {lr:-1} 3 [a] {per_task:{a:{}}}",
    "+tuning.per_task.nope": "{lr:1}", "+tuning.per_init.nope": "{lr:1}",
    "tuning.per_init": "3 [] [a]",
    "+dataset.tasks.cola.adapter": "/nowhere org/name {a:1} [] 3",
    "+dataset.tasks.cola.name": "x", "+dataset.tasks.cola.source": "x", "+merge.version": "0 x",
    "+dataset.tasks": "{'../evil':{text:[a],headline:mcc}}", "dataset.tasks": "null 3 []",
    "merge": "null 3 [] {a:1}", "init": "null 3 []", "tuning": "null 3", "dataset": "null []",
    "merge.grid": "{scaling:3} {scaling:[]} {nope:[1]} 3 [1]", "model": "null 3",
    "protocol": "null",
}  # fmt: skip
GROUPS = (
    "merge init tuning tuning.lora model dataset dataset.tasks.cola protocol trainer paths search"
)
VALUES = ["fast", "[1,2]", "{a:1}", "'ünï©ode'", "''", "[[]]", "{a:{b:[1]}}", "true"]
ODD = [
    *VALUES,
    "null",
    "-1",
    "0",
    "1e308",
    "nan",
    "[]",
    "{}",
    "'a b'",
    "'\\u202e'",
    "'a\\tb'",
    "'%s{}'",
]


NEEDED = """study model dataset tuning init merge search protocol trainer paths names overrides
seed diagnostics logger diagnostics.statistics names.init dataset.name dataset.tasks dataset.path
model.path model.blocks model.heads model.name tuning.lr tuning.lora tuning.lora.blocks tuning.name
protocol.name protocol.select paths.results paths.store merge._target_ merge.scaling
dataset.tasks.cola.text dataset.tasks.cola.headline trainer.accelerator rank heads""".split()


def wrong(draw, options):
    """A line that must be refused."""
    kind = draw.randrange(7)
    if kind == 6:
        return f"~{draw.choice(NEEDED)}"
    if kind == 0:
        key = "".join(draw.choices("abcxyz_", k=draw.randint(3, 12)))
        return f"+{draw.choice(GROUPS.split())}.{key}={draw.choice(ODD)}"
    if kind == 1:
        return f"{draw.choice(NUMBERS)}={draw.choice([v for v in VALUES if v != 'true'])}"
    if kind == 2:
        key = draw.choice(sorted(RANGES))
        return f"{key}={draw.choice(RANGES[key].split())}"
    if kind == 3:
        key = draw.choice(sorted(NAMES))
        return f"{key}={draw.choice(NAMES[key].split())}"
    if kind == 4:
        return f"merge.{draw.choice(options)}={draw.choice(['{a:1}', '[[]]', 'ünï©', '[{b:2}]'])}"
    where = draw.choice([*GROUPS.split(), "+merge.hook", "+init.statistics.x", "+logger", "+x"])
    target = draw.choice(["os.system", "builtins.eval", "osrm_exp.merging.linear.nope", "''", "3"])
    plus = "+" if where[0] != "+" else ""
    return f"{plus}{where}._target_={target}"


def odd(draw, options):
    """A line that may mean something."""
    keys = [*NUMBERS, *RANGES, *NAMES, *(f"merge.{option}" for option in options)]
    return f"{draw.choice(keys)}={draw.choice(ODD)}"


class Loaded(BaseException):
    """A checkpoint would be loaded now."""


def loads(*args, **keywords):
    raise Loaded


def outcome(composed, line, workshop):
    """What is said of a command line before a model is loaded: nothing, if it is accepted."""
    changed = copy.deepcopy(composed)
    try:
        parsed = OverridesParser.create().parse_overrides([line])
        ConfigLoaderImpl._apply_overrides_to_config(parsed, changed)
        config = OmegaConf.to_container(changed, resolve=True)
        if isinstance(config.get("overrides"), list):
            config["overrides"].append(line)
        pipeline.run(cell_from(config), workshop)
    except Loaded:
        return None
    except REFUSED as error:
        return str(error)
    raise AssertionError(f"{line}: ran without a model")


@pytest.fixture
def bases(configured, monkeypatch):
    for module in (bench, model, preflight, start, statistic):
        monkeypatch.setattr(module, "load_backbone", loads)
    found = [OmegaConf.create(configured("roberta", *base)) for base in BASES]
    for composed in found:
        OmegaConf.set_struct(composed, True)
    return found


def test_what_is_not_changed_is_let_in(bases, workshop):
    assert [outcome(composed, "seed=1", workshop) for composed in bases] == [None] * len(bases)


def test_400_command_lines_are_right_or_refused_in_one_sentence(bases, workshop):
    draw, accepted, seen = random.Random(0), [], 0
    for number in range(400):
        composed = bases[number % len(bases)]
        options = sorted(set(composed.merge) - {"_target_", "grid", "statistics", "page", "laws"})
        make = wrong if number % 4 else odd
        line = make(draw, options)
        try:
            said = outcome(composed, line, workshop)
        except Exception as error:
            raise AssertionError(f"{BASES[number % len(bases)]} {line}: raw {error!r}") from error
        seen += said is not None
        if said is None and make is wrong:
            accepted.append(f"{BASES[number % len(bases)]} {line}")
        assert said is None or said.strip(), line
    assert not accepted, "\n".join(accepted)
    assert seen > 300
