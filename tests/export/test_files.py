import json
import shutil
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from osrm_exp import needs, pipeline
from osrm_exp.artifacts import Workshop
from osrm_exp.bench import Bench, rows_of
from osrm_exp.export import files as export
from osrm_exp.export.card import card
from osrm_exp.lora import LowRank, Result
from osrm_exp.merging.api import configured
from osrm_exp.model import load_backbone, load_tokenizer, new_heads
from osrm_exp.placing import applied
from osrm_exp.report.rows import write_rows
from osrm_exp.spec import FineTune
from osrm_exp.store import Store
from osrm_exp.tasks.kinds import logits as answers
from osrm_exp.tasks.metrics import scores

LOW_RANK = ["average", "core_ties", "iso_c", "knots_ties", "lm_cocktail", "peft_cat", "pretrained",
            "regmean", "task_arithmetic", "tsv"]  # fmt: skip
FAMILIES = ["bert", "roberta", "t5", "llama"]
PLAIN = {"rank": None, "merged": False, "task": None}
BATCH = {"input_ids": torch.tensor([[5, 9, 14, 7, 1], [6, 8, 1, 0, 0]]),
         "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])}  # fmt: skip


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Workshop:
    """One store for the whole module: every family is trained once."""
    store = Store(tmp_path_factory.mktemp("store"))
    return Workshop(store, progress=False)


def logits(net) -> torch.Tensor:
    with torch.no_grad():
        return net.eval()(**BATCH).logits


def expected(cell, rows, shop, index, rank=None) -> torch.Tensor:
    """The logits of the evaluation: hooks on the base network, and the task's head."""
    adapters = export.adapters_of(cell, shop)
    bench = Bench(cell, adapters, shop)
    found = cell.merge.with_(**rows[0]["settings"])(bench.updates, **bench.statistics())
    merged = Result(dict(Result(found, cell.rank)), rank)
    heads = new_heads(cell.model, cell.tasks[index].outputs, adapters[index].heads)
    torch.manual_seed(0)
    net = load_backbone(cell.model, 1, precision=cell.tuning.precision).float()
    with applied(net, dict(merged), heads):
        return logits(net)


def base(cell, outputs, folder=None):
    """The checkpoint as its users load it, with the head of a file."""
    torch.manual_seed(1)
    path = cell.model.path
    net = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=outputs, ignore_mismatched_sizes=True,
        pad_token_id=load_tokenizer(cell.model).pad_token_id,
    )  # fmt: skip
    return with_head(net, folder) if folder else net


def with_head(net, file):
    missing, unexpected = net.load_state_dict(heads := load_file(file), strict=False)
    assert not unexpected and set(missing).isdisjoint(heads)
    return net


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LOW_RANK)
def test_peft_loads_a_low_rank_result_with_equal_logits(cell, shop, tmp_path, name):
    chosen = cell("roberta", f"merge={name}")
    rows = pipeline.run(chosen, shop).rows
    out = export.export(chosen, rows, tmp_path / "out", shop, **PLAIN)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] and config["rank_pattern"] == config["alpha_pattern"]
    assert config["base_model_name_or_path"] == chosen.model.path and not config["modules_to_save"]
    for index, task in enumerate(chosen.tasks):
        net = base(chosen, task.outputs, out / "heads" / f"{task.name}.safetensors")
        plain = logits(net)
        found = logits(PeftModel.from_pretrained(net, out))
        close(found, expected(chosen, rows, shop, index))
        assert torch.allclose(found, plain, rtol=1e-3) == (name == "pretrained")


@pytest.mark.parametrize("family", FAMILIES)
def test_with_a_task_the_adapter_is_complete(cell, shop, tmp_path, family):
    chosen = cell(family, "merge=average")
    rows = pipeline.run(chosen, shop).rows
    out = export.export(chosen, rows, tmp_path / "out", shop, **{**PLAIN, "task": "mnli"})
    net = PeftModel.from_pretrained(base(chosen, 3), out)
    close(logits(net), expected(chosen, rows, shop, 2))


@pytest.mark.parametrize("family, precision", [*((f, "fp32") for f in FAMILIES), ("t5", "bf16")])
def test_a_checkpoint_loads_with_equal_logits(cell, shop, tmp_path, family, precision):
    """Of a bf16 cell too: its base as it was rounded, the deltas exactly."""
    chosen = cell(family, "merge=ties", f"tuning.precision={precision}")
    rows = pipeline.run(chosen, shop).rows
    options = {"rank": None, "merged": True}
    out = export.export(chosen, rows, tmp_path / "mnli", shop, **options, task="mnli")
    net = AutoModelForSequenceClassification.from_pretrained(out)
    close(logits(net), expected(chosen, rows, shop, 2))
    assert net.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    assert AutoTokenizer.from_pretrained(out)("the cat").input_ids
    out = export.export(chosen, rows, tmp_path / "bare", shop, **options, task=None)
    held = set(load_file(out / "model.safetensors"))
    for index, task in enumerate(chosen.tasks):
        file = out / "heads" / f"{task.name}.safetensors"
        assert held.isdisjoint(load_file(file))
        torch.manual_seed(2)
        net = AutoModelForSequenceClassification.from_pretrained(out, num_labels=task.outputs)
        close(logits(with_head(net, file)), expected(chosen, rows, shop, index))


@pytest.mark.parametrize("arm", ["kaiming", "head_only"])
def test_an_export_has_the_heads_that_its_cell_was_scored_with(cell, shop, tmp_path, arm):
    chosen = cell("roberta", "merge=average", f"heads={arm}", "dataset.only=[cola,mnli]")
    rows = pipeline.run(chosen, shop).rows
    out = export.export(chosen, rows, tmp_path / "out", shop, **{**PLAIN, "task": "mnli"})
    assert f"of the adapters of init {arm}" in (out / "README.md").read_text()
    nets = [
        PeftModel.from_pretrained(
            base(chosen, 2, out / "heads" / "cola.safetensors"),
            export.export(chosen, rows, tmp_path / "bare", shop, **PLAIN),
        ),
        PeftModel.from_pretrained(base(chosen, 3), out),
    ]
    merged = export.export(
        chosen, rows, tmp_path / "all", shop, rank=None, merged=True, task="mnli"
    )
    nets.append(AutoModelForSequenceClassification.from_pretrained(merged))
    for net, index in zip(nets, (0, 1, 1)):
        task, data = chosen.tasks[index], rows_of(chosen)[index]
        found = scores(task, *answers(net.eval(), data.batches("validation", 8)), [0] * 24)
        told = {row["metric"]: row["value"] for row in rows if row["task"] == task.name}
        assert found.values == pytest.approx(told, abs=1e-6)
    own = {**PLAIN, "task": "mnli"}
    plain = cell("roberta", "merge=average", "dataset.only=[cola,mnli]")
    other = export.export(plain, pipeline.run(plain, shop).rows, tmp_path / "own", shop, **own)
    first, second = (load_file(o / "heads" / "mnli.safetensors") for o in (out, other))
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_heads_that_the_store_lacks_are_named(cell, shop, tmp_path):
    chosen = cell("roberta", "merge=average", "heads=kaiming", "seed=5")
    rows = pipeline.run(chosen, shop).rows
    for folder in (shop.store.folder(one) for one in needs.heads(chosen)):
        folder.rename(tmp_path / folder.name)
    with pytest.raises(ValueError, match=r"holds no adapter cola-s5-.*paths\.store=DIR"):
        export.export(chosen, rows, tmp_path / "out", shop, **PLAIN)


def test_a_transposed_weight_takes_its_delta_the_right_way_round(cell, shop, tmp_path, checkpoints):
    """GPT-2's, which are stored [in, out]; its projection is square, so no shape would object."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=24, n_embd=32, n_layer=2, n_head=2, n_positions=64, pad_token_id=0
    )
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "gpt2")
    for file in checkpoints["bert"].glob("*token*"):
        shutil.copy(file, tmp_path / "gpt2")
    chosen = cell(
        "llama", "merge=ties", f"model.path={tmp_path / 'gpt2'}", "tuning.lora.blocks=[q,v]",
        "model.blocks={q: c_attn, v: attn.c_proj}", "dataset.only=[cola,mnli]", "tuning.epochs=1",
    )  # fmt: skip
    rows = pipeline.run(chosen, shop).rows
    options = {"rank": None, "merged": True, "task": "mnli"}
    out = export.export(chosen, rows, tmp_path / "out", shop, **options)
    net = AutoModelForSequenceClassification.from_pretrained(out)
    close(logits(net), expected(chosen, rows, shop, 1))
    low = chosen.model_copy(update={"merge": configured("average")})
    rows = pipeline.run(low, shop).rows
    out = export.export(low, rows, tmp_path / "low", shop, **{**PLAIN, "task": "mnli"})
    close(logits(PeftModel.from_pretrained(base(low, 3), out)), expected(low, rows, shop, 1))


def test_a_dense_result_becomes_an_adapter_by_truncation_alone(cell, shop, tmp_path):
    chosen = cell("roberta", "merge=ties")
    rows = pipeline.run(chosen, shop).rows
    with pytest.raises(ValueError, match=r"is dense.*--rank K.*--merged"):
        export.export(chosen, rows, tmp_path / "out", shop, **PLAIN)
    assert not list(tmp_path.glob("*out*"))
    out = export.export(chosen, rows, tmp_path / "out", shop, **{**PLAIN, "rank": 3})
    net = base(chosen, 3, out / "heads" / "mnli.safetensors")
    close(logits(PeftModel.from_pretrained(net, out)), expected(chosen, rows, shop, 2, rank=3))
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 3
    text = (out / "README.md").read_text()
    assert "truncated here" in text and "Measured before the truncation" in text
    cut = cell("roberta", "merge=ties", "rank=3")
    rows = pipeline.run(cut, shop).rows
    same = export.export(cut, rows, tmp_path / "cell", shop, **PLAIN)
    first, second = (load_file(f / "adapter_model.safetensors") for f in (out, same))
    assert all(torch.allclose(first[k].abs(), second[k].abs(), atol=1e-6) for k in first)
    text = (same / "README.md").read_text()
    assert f"rank 3, relative error {rows[0]['truncation_error']:.2e}" in text


def test_unequal_ranks_are_written_as_patterns(cell, shop, tmp_path, monkeypatch):
    chosen = cell("roberta", "merge=average")
    rows = pipeline.run(chosen, shop).rows
    result = export.repeated(chosen, rows, export.adapters_of(chosen, shop), shop)
    changed = {name: LowRank(u.A[: 2 + i], u.B[:, : 2 + i]) for i, (name, u) in enumerate(result)}
    monkeypatch.setattr(export, "repeated", lambda *_: Result(changed))
    out = export.export(chosen, rows, tmp_path / "out", shop, **PLAIN)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["r"] == 1 + len(changed) and len(config["rank_pattern"]) == len(changed) - 1
    net = PeftModel.from_pretrained(base(chosen, 2), out)
    for name, update in changed.items():
        close(net.base_model.model.get_submodule(name).get_delta_weight("default"), update.delta)


def test_factors_are_balanced(cell, shop, tmp_path):
    chosen = cell("roberta", "merge=task_arithmetic")
    rows = pipeline.run(chosen, shop).rows
    out = export.export(chosen, rows, tmp_path / "out", shop, **PLAIN)
    tensors = load_file(out / "adapter_model.safetensors")
    for name, A in tensors.items():
        if "lora_A" in name:
            B = tensors[name.replace("lora_A", "lora_B")]
            close(A.norm(dim=1), B.norm(dim=0))


def test_the_settings_that_a_search_chose_are_exported(cell, shop, tmp_path):
    grid = "merge.grid={scaling: [0.25, 0.5]}"
    chosen = cell("roberta", "merge=task_arithmetic", "search=grid", grid)
    rows = [
        {**row, "settings": {"scaling": 0.25}, "tuned_on": "tune"}
        for row in pipeline.run(chosen, shop).rows
    ]
    whole = pipeline.run(cell("roberta", "merge=task_arithmetic", "merge.scaling=0.5"), shop).rows
    folders = [
        export.export(chosen, given, tmp_path / str(i), shop, **PLAIN)
        for i, given in enumerate((rows, whole))
    ]
    part, whole = (PeftModel.from_pretrained(base(chosen, 2), folder) for folder in folders)
    name = next(iter(export.adapters_of(chosen, shop)[0].updates))
    one, other = (
        net.base_model.model.get_submodule(name).get_delta_weight("default")
        for net in (part, whole)
    )
    close(2 * one, other)
    assert "tuned on" in (folders[0] / "README.md").read_text()


def test_the_card_says_what_was_merged_how_and_how_well(cell, shop, tmp_path):
    chosen = cell("roberta", "merge=knots_ties", "init=kaiming")
    rows = pipeline.run(chosen, shop).rows
    text = (export.export(chosen, rows, tmp_path / "out", shop, **PLAIN) / "README.md").read_text()
    assert text.startswith("---\nlibrary_name:")
    facts = ["knots_ties", "knots", "density=", "kaiming", "clean", "roberta_large", chosen.digest]
    for fact in [*facts, *rows[0]["adapters"], *(task.name for task in chosen.tasks)]:
        assert fact in text, fact
    for row in rows:
        assert f"{row['value']:.4f}{'*' * row['degenerate']} " in text and row["metric"] in text
    flat = [{**row, "degenerate": True} for row in rows]
    assert "answers the same for every row" in card(chosen, flat, error=None, **PLAIN)


@pytest.mark.parametrize("family", ["roberta", "llama"])
def test_the_code_on_the_card_runs(cell, shop, tmp_path, monkeypatch, family):
    chosen = cell(family, "merge=average")
    rows = pipeline.run(chosen, shop).rows
    for i, (merged, task) in enumerate(
        [(False, None), (False, "mnli"), (True, None), (True, "mnli")]
    ):
        options = {"rank": None, "merged": merged, "task": task}
        out = export.export(chosen, rows, tmp_path / str(i), shop, **options)
        code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
        monkeypatch.chdir(out)
        names = {}
        exec(code, names)
        close(logits(names["net"]), expected(chosen, rows, shop, 2 if task else 0))


def test_what_no_file_can_hold_is_said_in_one_sentence(cell, shop, tmp_path, workshop):
    chosen = cell("roberta", "merge=average")
    rows = pipeline.run(chosen, shop).rows
    many = cell("roberta", "merge=emr")
    for call, sentence in {
        lambda: export.export(many, pipeline.run(many, shop).rows, tmp_path / "a", shop, **PLAIN):
            "a per-task result gives every task a delta of its own",
        lambda: export.export(chosen, rows, tmp_path, shop, **PLAIN): "exists already",
        lambda: export.export(chosen, rows, tmp_path / "a", shop, **{**PLAIN, "task": "rte"}):
            "--task rte is not in this cell; it has: cola, stsb, mnli",
        lambda: export.export(chosen, rows, tmp_path / "a", shop, **{**PLAIN, "rank": 0}):
            "--rank 0",
        lambda: export.export(chosen, rows, tmp_path / "a", workshop, **PLAIN):
            "holds no adapter cola-s42-.*paths.store=DIR",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=sentence) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("a*"))


@pytest.fixture
def written(cell, shop, tmp_path):
    """A cell's file of rows, as a sweep leaves it."""
    chosen = cell("roberta", "merge=core_ties", "merge.scaling=0.7")
    return chosen, write_rows(tmp_path / "results", chosen.digest, pipeline.run(chosen, shop).rows)


def places(chosen, shop):
    """What rows do not keep."""
    there = [one for one in chosen.overrides if one.startswith(("model.path", "dataset.path"))]
    return [*there, f"paths.store={shop.store.root}"]


def test_one_command_does_it_from_a_cell(written, shop, tmp_path):
    chosen, file = written
    out = tmp_path / "out"
    command = [sys.executable, "-m", "osrm_exp.export", file, out, *places(chosen, shop)]
    answer = subprocess.run([*command, "--task", "cola"], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == str(out)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    net = PeftModel.from_pretrained(base(chosen, 2), out)
    close(logits(net), expected(chosen, rows, shop, 0))
    with pytest.raises(SystemExit, match=r"osrm_exp: .* exists already"):
        export.main([str(argument) for argument in command[3:]])


def test_rows_compose_their_cell_or_say_why_not(written, shop, tmp_path, monkeypatch):
    chosen, file = written
    there = places(chosen, shop)
    found, rows, workshop = export.cell_of(file, there)
    assert found.digest == chosen.digest and len(rows) > 3
    assert workshop.store.root == shop.store.root
    with pytest.raises(ValueError, match=f"is of the cell {chosen.digest}.*run the cell again"):
        export.cell_of(file, [*there, "seed=3"])
    (tmp_path / "empty.jsonl").write_text("")
    for other in (tmp_path / "nothing.jsonl", tmp_path / "empty.jsonl"):
        with pytest.raises(ValueError, match=r"is not a file of rows|empty\.jsonl is damaged"):
            export.cell_of(other, there)
    with pytest.raises(ValueError, match=r"made them: add model\.path=… dataset\.path=…$"):
        export.cell_of(file, there[-1:])
    monkeypatch.setattr(FineTune, "build", lambda *_: pytest.fail("trained"))
    with pytest.raises(SystemExit, match="holds no adapter"):
        export.main(
            [str(file), str(tmp_path / "out"), *there[:-1], f"paths.store={tmp_path / 'void'}"]
        )
