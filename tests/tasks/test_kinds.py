import math
import re
from pathlib import Path

import pytest
import torch
import transformers
from peft import TaskType

import osrm_exp
from osrm_exp.spec import Task
from osrm_exp.tasks.kinds import causal, classification, regression


def task(labels, **own):
    own = own or {"text": ("x",)}
    return Task(name="t", path="p", source="s", labels=labels, headline="accuracy",
                seed=0, holdout=0.1, **own)  # fmt: skip


TWO, RATING, VALUE = task(("no", "yes")), task(("1", "2", "3")), task(None)
WORD, FREE = task(("no", "yes"), prompt="{x}"), task(None, prompt="{x}")


def test_a_task_says_its_kind_and_nothing_else_asks_for_its_labels():
    assert TWO.kind is classification and VALUE.kind is regression
    assert (TWO.outputs, RATING.outputs, VALUE.outputs) == (2, 3, 1)
    assert WORD.kind is causal is FREE.kind and WORD.outputs == FREE.outputs == 0
    assert (WORD.free, FREE.free, VALUE.free) == (False, True, False)
    package = Path(osrm_exp.__file__).parent
    asked = re.compile(r"\.labels( is |:| else )|not \w+\.labels|cross_entropy|mse_loss")
    where = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(asked.search(line) for line in path.read_text().splitlines())
    }
    kinds = {"tasks/kinds.py", "tasks/generation.py", "tasks/prompts.py", "tasks/texts.py"}
    others = {"spec/subject.py", "export/files.py"}  # a config names labels
    assert {"spec/subject.py", "tasks/kinds.py"} <= where <= kinds | others


@pytest.mark.parametrize("kind", [classification, regression, causal])
def test_a_kind_is_one_that_transformers_and_peft_know(kind):
    assert hasattr(transformers, kind.auto) and kind.task_type in TaskType.__members__


@pytest.mark.parametrize(
    ("of", "value", "found"),
    [(TWO, 1, 1), (TWO, 1.0, 1), (TWO, True, 1), (TWO, "yes", 1), (TWO, "1", 1),
     (RATING, 1, 0), (RATING, "3", 2), (VALUE, 2, 2.0), (VALUE, 0.5, 0.5),
     (WORD, "yes", 1), (WORD, False, 0), (FREE, "so it is", ("so it is",))],
)  # fmt: skip
def test_labels_are_names_or_places_and_a_regression_has_values(of, value, found):
    label = of.kind.label(of, value)
    assert label == found and type(label) is type(found)


@pytest.mark.parametrize(
    ("of", "value"),
    [(TWO, 2), (TWO, -1), (TWO, 0.5), (TWO, math.nan), (TWO, None), (TWO, "Yes"), (RATING, 0),
     (VALUE, "2"), (VALUE, None), (VALUE, math.nan), (VALUE, math.inf), (VALUE, True),
     (WORD, "maybe"), (FREE, " "), (FREE, None), (FREE, 2)],
)  # fmt: skip
def test_what_is_no_label_is_told(of, value):
    with pytest.raises(ValueError, match=r"none of its|not a finite number|no text that"):
        of.kind.label(of, value)


def test_losses_are_means_over_rows():
    outputs = torch.tensor([[0.0, 0.0], [0.0, 0.0]], requires_grad=True)
    loss = classification.loss(outputs, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    values = regression.loss(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]))
    assert values.item() == pytest.approx(5)
    half = regression.loss(torch.tensor([[1.0]], dtype=torch.bfloat16), torch.tensor([0.0]))
    assert half.dtype == torch.float32


def test_one_label_or_none_at_all_is_no_classification():
    for labels in ((), ("only",)):
        with pytest.raises(ValueError, match="at least 2"):
            task(labels)
