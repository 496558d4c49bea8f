"""`osrm-exp merge METHOD ADAPTER... OUT`, the command."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from osrm_exp.adapter import read_adapter, write_adapter
from osrm_exp.lora import LowRank
from osrm_exp.merging import merge
from osrm_exp.merging.__main__ import main

Q = "roberta.encoder.layer.0.attention.self.query"


@pytest.fixture
def adapters(tmp_path, checkpoints):
    """Two folders, one of which has an equals sign in its path."""
    for name in ("a", "lr=1/b"):
        update = LowRank(torch.randn(2, 32), torch.randn(32, 2))
        write_adapter(
            tmp_path / name, {Q: update}, base_model_name_or_path=str(checkpoints["roberta"])
        )
    return [str(tmp_path / "a"), str(tmp_path / "lr=1/b")]


def test_an_adapter(adapters, tmp_path, capsys, checkpoints):
    out = tmp_path / "out"
    main(["task_arithmetic", *adapters, str(out), "scaling=1e-1"])
    assert capsys.readouterr().out == f"{out}\n"
    expected = merge("task_arithmetic", adapters, scaling=0.1)
    found = read_adapter(out)
    assert found.base == str(checkpoints["roberta"])
    torch.testing.assert_close(found.updates[Q].delta, expected[Q].delta)


def test_a_checkpoint_and_a_truncation(adapters, tmp_path, checkpoints):
    base = checkpoints["roberta"]
    main(["ties", *adapters, str(tmp_path / "net"), "density=0.5", "--base", str(base)])
    before, after = (
        AutoModelForSequenceClassification.from_pretrained(f).get_submodule(Q).weight
        for f in (base, tmp_path / "net")
    )
    expected = merge("ties", adapters, density=0.5)[Q]
    torch.testing.assert_close(after - before, expected.delta)
    main(["ties", "--rank", "3", *adapters, "density=0.5", str(tmp_path / "low")])
    kept = load_file(tmp_path / "low" / "adapter_model.safetensors")
    assert kept[f"base_model.model.{Q}.lora_A.weight"].shape == (3, 32)
    found = read_adapter(tmp_path / "low").updates[Q].delta
    torch.testing.assert_close(found, expected.truncate(3).delta.float())


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["tise", "A", "B", "OUT"], "there is no merge 'tise'"),
        (["../merge/ties", "A", "B", "OUT"], "there is no merge"),
        (["ties", "A", "B", "OUT", "lam=1"], "lam"),
        (["ties", "A", "B", "OUT", "density=much"], "density"),
        (["ties", "A", "B", "OUT", "density=[1"], "osrm_exp"),
        (["ties", "A", "B", "OUT", "density=${x}"], "osrm_exp"),
        (["ties", "A", "B", "OUT", "name=1"], "name"),
        (["ties", "A", "B", "OUT"], r"--rank K.*--base MODEL"),
        (["ties", "A", "nowhere", "OUT"], "nowhere is not a PEFT adapter"),
        (["ties", "A", "B", "A"], "exists already"),
        (["average", "A", "B", "OUT", "--rank", "0"], "rank 0"),
        (["average", "A", "OUT", "--base", "nowhere"], "nowhere is not a checkpoint"),
        (["regmean", "A", "B", "OUT"], "regmean needs the gram .*merge=regmean"),
        (["emr", "A", "B", "OUT"], "task"),
        (["individual", "A", "B", "OUT"], "task"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_1(adapters, tmp_path, words, sentence):
    named = {"A": adapters[0], "B": adapters[1], "OUT": str(tmp_path / "out")}
    with pytest.raises(SystemExit, match=sentence) as caught:
        main([named.get(word, word) for word in words])
    assert "\n" not in caught.value.code and caught.value.code.startswith("osrm_exp: ")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "lr=1"}


@pytest.mark.parametrize(
    "words",
    ["", "ties", "ties out", "ties density=1 out", "ties a out --rank x", "ties a out --no"],
)
def test_too_few_words_are_argparses_business(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2 and "usage: osrm-exp merge" in capsys.readouterr().err


def test_importing_the_methods_imports_little_but_torch():
    import subprocess
    import sys

    heavy = {"peft", "sklearn", "scipy", "transformers", "datasets", "pandas", "hydra", "omegaconf",
             "pydantic", "lightning"}  # fmt: skip
    code = f"import sys, osrm_exp.merging; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
