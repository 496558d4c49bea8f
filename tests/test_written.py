"""Causal language models through the production path: trained, merged, written, exported."""

import json
import math

import pytest
import torch
from conftest import WRITTEN
from peft import AutoPeftModelForCausalLM
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from osrm_exp import needs, pipeline
from osrm_exp.adapter import read_adapter
from osrm_exp.artifacts.statistic import read_statistic
from osrm_exp.bench import Bench, rows_of
from osrm_exp.diagnostics import diagnosed
from osrm_exp.evaluate import evaluate
from osrm_exp.export.files import export, repeated
from osrm_exp.lora import Result
from osrm_exp.merging import merge
from osrm_exp.merging.__main__ import main
from osrm_exp.placing import applied
from osrm_exp.tasks import generation


@pytest.fixture
def written(cell):
    """`written(*overrides)`: a cell of three tasks that are written, on a tiny Llama."""
    return lambda *overrides: cell("writer", *WRITTEN, *overrides)


@torch.inference_mode()
def answers(net, cell):
    """What a network writes for every task's validation rows."""
    found = []
    for data in rows_of(cell):
        for batch in data.batches("validation", 8):
            found += generation.greedy(net, batch, {1}, 5)
    return found


def test_a_cell_of_written_tasks_goes_all_the_way(written, workshop, tmp_path):
    chosen = written("init=osrm", "merge=individual", "diagnostics=layers", "tuning.epochs=3")
    outcome = pipeline.run(chosen, workshop)
    head = {row["task"]: row for row in outcome.rows if row["headline"]}
    assert {task: row["metric"] for task, row in head.items()} == {
        "say": "rouge_l", "color": "accuracy", "no": "balanced_accuracy",
    }  # fmt: skip
    json.dumps(outcome.rows, allow_nan=False)
    values = {(row["task"], row["metric"]): row["value"] for row in outcome.rows}
    bare = pipeline.run(written("init=osrm", "merge=pretrained", "tuning.epochs=3"), workshop)
    before = {(row["task"], row["metric"]): row["value"] for row in bare.rows}
    for task in head:  # training lowers the loss on the response, and on nothing else
        assert values[task, "response_loss"] < before[task, "response_loss"] - 0.01
        assert values[task, "likelihood"] > before[task, "likelihood"]
    assert {one["task"] for one in outcome.predictions} == set(head)
    assert len({row["metric"] for row in diagnosed(chosen, workshop)}) == 6
    # adapters are plain PEFT folders of a causal language model, without a head
    folder = workshop.store.folder(needs.fine_tunes(chosen)[0])
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("CAUSAL_LM", None)
    with safe_open(folder / "adapter_model.safetensors", "pt") as tensors:
        assert all(".lora_" in name for name in tensors.keys())  # noqa: SIM118
    history = json.loads((folder / "training.json").read_text())
    assert history["headline"] == max(epoch["say/likelihood"] for epoch in history["epochs"])

    # an exported merge writes what the bench's does
    ties = written("init=osrm", "merge=ties", "merge.scaling=20", "tuning.epochs=3")
    rows = pipeline.run(ties, workshop).rows
    adapters = [read_adapter(workshop.store.folder(one)) for one in needs.fine_tunes(ties)]
    bench = Bench(ties, adapters, workshop)
    result = dict(repeated(ties, rows, adapters, workshop))
    plain = answers(bench.net, ties)
    with applied(bench.net, result) as net:
        ours = answers(net, ties)
    assert ours != plain  # the updates matter
    out = export(ties, rows, tmp_path / "merged", workshop, rank=None, merged=True, task=None)
    merged = AutoModelForCausalLM.from_pretrained(out).eval()
    assert not (out / "heads").exists() and merged.config.id2label == bench.net.config.id2label
    assert AutoTokenizer.from_pretrained(out)("a cat").input_ids
    assert answers(merged, ties) == ours
    said = (out / "README.md").read_text()
    assert "AutoModelForCausalLM.from_pretrained('.')" in said and "heads/" not in said
    low = export(ties, rows, tmp_path / "adapter", workshop, rank=12, merged=False, task=None)
    assert json.loads((low / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    truncated = dict(Result(result, 12))
    with applied(bench.net, truncated) as net:
        ours = answers(net, ties)
    loaded = AutoPeftModelForCausalLM.from_pretrained(low).eval()
    assert answers(loaded.base_model.model, ties) == ours
    with pytest.raises(ValueError, match="--task say: its answers are written, it has no head"):
        export(ties, rows, tmp_path / "x", workshop, rank=None, merged=True, task="say")


def test_statistics_of_merges_and_other_peoples_adapters(written, workshop, configured, tmp_path):
    chosen = written("merge=regmean")
    pipeline.run(chosen, workshop)
    for name in ("fisher_empirical", "lm_cocktail", "regmean_pp"):
        pipeline.run(written(f"merge={name}"), workshop)
    folders = [workshop.store.folder(one) for one in needs.fine_tunes(chosen)]
    given = [f"+dataset.tasks.{t.name}.adapter={f}" for t, f in zip(chosen.tasks, folders)]
    own = {row["task"]: row["value"] for row in pipeline.run(written(), workshop).rows
           if row["headline"]}  # fmt: skip
    theirs = pipeline.run(written(*given), workshop).rows
    assert {row["task"]: row["value"] for row in theirs if row["headline"]} == own
    # the command and the function
    main(["task_arithmetic", *map(str, folders), str(tmp_path / "out"), "scaling=0.3"])
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    adapters = dict(zip(own, map(str, folders)))
    config = configured("writer", *WRITTEN)
    paths = [one for one in config["overrides"] if "model=" not in one and "dataset=" not in one
             and "dataset.only" not in one]  # fmt: skip
    merged = merge("task_arithmetic", folders, scaling=0.3)
    found = evaluate(merged, adapters, *paths, model="llama", suite="instruct")
    assert {task: found[task][t.headline] for task, t in zip(own, chosen.tasks)} == own


def test_statistics_count_the_tokens_that_an_option_names(written, workshop):
    option = "+init.statistics.others.tokens="
    grams = {}
    for tokens in ("all", "prompt", "response"):
        chosen = written("init=osrm", *([] if tokens == "all" else [option + tokens]))
        (own,) = [one for one in needs.of_inits(needs.fine_tunes(chosen)) if one.task.name == "say"]
        grams[tokens] = next(iter(read_statistic(workshop.store.get(own, workshop)).items()))[1]
    data = rows_of(chosen)[0]
    rows = data.train[:100]
    prompts = sum(sum(label == -100 for label in row["labels"]) for row in rows)
    count = sum(len(row["labels"]) for row in rows)
    parts = prompts * grams["prompt"] + (count - prompts) * grams["response"]
    torch.testing.assert_close(parts / count, grams["all"])
    assert not torch.allclose(grams["prompt"], grams["response"], rtol=0.1)


@pytest.mark.parametrize(
    ("family", "overrides", "sentence"),
    [
        ("writer", ["dataset.tasks.say.prompt='{words}'"], "has no column 'words'; it has"),
        ("writer", ["tuning.max_length=4"], r"beyond tuning.max_length=4: raise it"),
        ("writer", ["tuning.max_length=65"], "beyond the 64 positions"),
        ("writer", ["dataset.tasks.say.max_new_tokens=60"], "with 60 for an answer is beyond"),
        ("writer", ["dataset.tasks.say.headline=response_loss"], "better when higher"),
        ("writer", ["dataset.tasks.say.label=idx"], "has no column 'idx'"),
        ("writer", ["dataset.chat=true"], "say.chat=true, and the tokenizer .* no chat template"),
        ("writer", ["heads=gaussian"], "heads=gaussian: say is written, without a head"),
        ("writer", ["init=head_only"], "init=head_only trains a head alone"),
        ("writer", ["merge=fisher"], "take mode=empirical"),
        ("writer", ["init=osrm", "+init.statistics.others.tokens=some"], "'prompt' or 'response'"),
        ("writer", ["dataset.only=[say,color,mixed]",
                    "+dataset.tasks.mixed={config:sst2,text:sentence,labels:[a,b],headline:mcc}"],
         "say is written by a causal language model and mixed has a head"),
        ("t5", [], "t5_large is a T5, which is no causal language model"),
        ("roberta", [], "roberta_large is a Roberta, which is no causal language model"),
        ("llama", [], "does not hold lm_head.weight"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_before_any_training(cell, workshop, family, overrides, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        pipeline.run(cell(family, *WRITTEN, "init=gaussian", *overrides), workshop)
    assert "\n" not in str(caught.value)
    assert not list(workshop.store.root.glob("FineTune/[!.]*"))


def test_tokens_of_a_response_are_asked_of_a_written_task_alone(cell, workshop):
    with pytest.raises(ValueError, match="tokens=response needs a task whose response is written"):
        pipeline.run(cell("roberta", "init=osrm", "+init.statistics.others.tokens=response"),
                     workshop)  # fmt: skip


def test_an_adapter_with_a_head_is_none_of_a_written_task(cell, written, workshop):
    headed = cell("llama", "dataset.only=[cola]", "tuning.epochs=1")
    pipeline.run(headed, workshop)
    folder = workshop.store.folder(needs.fine_tunes(headed)[0])
    with pytest.raises(ValueError, match=r"has a head, score\.weight, and its task is written"):
        pipeline.run(written(f"+dataset.tasks.say.adapter={folder}"), workshop)


def test_a_generation_that_does_not_stop_is_bounded_and_counted(written, workshop, checkpoints):
    chosen = written("merge=pretrained", "tuning.epochs=1", "dataset.only=[say,color]")
    rows = pipeline.run(chosen, workshop).rows
    unfinished = {row["task"]: row["value"] for row in rows if row["metric"] == "unfinished"}
    assert 0 <= unfinished["say"] <= 1 and math.isfinite(unfinished["say"])
    assert unfinished["say"] > 0.5  # an untrained network rarely ends
