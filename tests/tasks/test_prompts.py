import pytest
from transformers import AutoTokenizer

from osrm_exp.spec import Task
from osrm_exp.tasks import prompts
from osrm_exp.tasks.prompts import Row, encode, framed, gathered, spread

EOS, BOS = 1, 3


def task(**own):
    fields = {"prompt": "{x}", "headline": "exact_match", **own}
    return Task(name="t", path="p", source="s", seed=0, holdout=0.1, **fields)


FREE, WORDS = task(), task(prompt="a {x} the {y}", labels=("red", "blue big"))
CHAT = (
    "{% for m in messages %}{{ 'the' if m.role == 'user' else 'a' }} {{ m.content }} likes "
    "{% endfor %}{% if add_generation_prompt %}a {% endif %}"
)


@pytest.fixture
def tokenizer(checkpoints):
    return AutoTokenizer.from_pretrained(checkpoints["writer"])


def read(tokenizer, ids):
    return tokenizer.decode(ids).split()


def test_a_response_follows_its_prompt_and_ends(tokenizer):
    (one,) = encode(WORDS, [Row(7, ("dog", "cat"), 1)], tokenizer, 64)
    assert read(tokenizer, one["input_ids"]) == "a dog the cat blue big </s>".split()
    assert one["labels"] == [-100] * 4 + one["input_ids"][4:]
    assert (one["row"], one["answers"]) == (7, 1)
    (one,) = encode(FREE, [Row(0, ("dog",), ("cat", "fox"))], tokenizer, 64)
    assert read(tokenizer, one["input_ids"]) == "dog cat </s>".split()
    assert one["answers"] == ("cat", "fox")


def test_the_template_frames_a_chat_and_says_what_ends_a_turn(tokenizer):
    tokenizer.chat_template = CHAT
    (one,) = encode(FREE, [Row(0, ("dog",), ("cat",))], tokenizer, 64)
    assert read(tokenizer, one["input_ids"]) == "the dog likes a cat likes".split()
    assert one["labels"][:4] == [-100] * 4 and -100 not in one["labels"][4:]
    (bare,) = encode(task(chat=False), [Row(0, ("dog",), ("cat",))], tokenizer, 64)
    assert read(tokenizer, bare["input_ids"]) == "dog cat </s>".split()


def test_a_template_that_adds_nothing_behind_a_response_leaves_the_end_of_the_sequence(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    assert framed(FREE, tokenizer).end == EOS
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    assert framed(FREE, tokenizer).end == EOS  # the response is not found in it


def test_a_chat_without_a_template_and_a_tokenizer_without_an_end_are_told(tokenizer):
    with pytest.raises(
        ValueError, match=r"t\.chat=true, and the tokenizer .* has no chat template"
    ):
        framed(task(chat=True), tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token, so that no answer would ever"):
        encode(FREE, [Row(0, ("dog",), ("cat",))], tokenizer, 64)


@pytest.mark.parametrize(
    ("of", "texts", "length", "sentence"),
    [
        (FREE, "dog cat fox", 3, r"prompt of row 5 .* has 3 tokens, which with 1 for an answer"),
        (task(max_new_tokens=9), "dog", 8, "with 9 for an answer is beyond tuning.max_length=8"),
        (FREE, "", 8, "prompt of row 5 .* is empty"),
        (task(answer="# (.*)"), "dog", 8, "response of row 5 .* holds no dataset.tasks.t.answer"),
    ],
)
def test_a_prompt_without_room_or_an_answer_is_told(tokenizer, of, texts, length, sentence):
    with pytest.raises(ValueError, match=sentence):
        encode(of, [Row(5, (texts,), ("cat",))], tokenizer, length)


def test_a_long_response_is_cut_and_said_a_prompt_never(tokenizer, caplog):
    rows = [Row(i, ("dog",), (text,)) for i, text in enumerate(["cat fox bird", "cat"])]
    long, short = encode(FREE, rows, tokenizer, 3)
    assert read(tokenizer, long["input_ids"]) == "dog cat fox".split()
    assert short["input_ids"][-1] == EOS
    assert "cuts 1 of 2 responses" in caplog.text


def test_rows_of_one_prompt_are_one_row_with_all_references():
    rows = [Row(0, ("a",), ("1",)), Row(1, ("b",), ("2",)), Row(2, ("a",), ("3",))]
    assert gathered(FREE, rows) == [Row(0, ("a",), ("1", "3")), Row(1, ("b",), ("2",))]
    words = [Row(0, ("a", "b"), 1), Row(1, ("a", "b"), 1)]
    assert gathered(WORDS, words) == words and spread(words) == words
    assert [(r.number, r.label) for r in spread(gathered(FREE, rows))] == [
        (0, ("1",)), (1, ("2",)), (0, ("3",)),
    ]  # fmt: skip


def test_batches_are_padded_on_the_right_and_padding_counts_in_no_loss(tokenizer):
    rows = [Row(0, ("dog",), ("cat",)), Row(1, ("dog cat fox",), ("cat",))]
    batch = prompts.collate(encode(FREE, rows, tokenizer, 64), tokenizer, None)
    assert batch["input_ids"].shape == (2, 5)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert batch["labels"][0].tolist()[3:] == [-100, -100]
    assert prompts.collate(encode(FREE, rows, tokenizer, 64), tokenizer, 9)["labels"].shape[1] == 9


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"prompt": "no column"}, "names the columns of its text in braces"),
        ({"prompt": "{}"}, "in braces"), ({"prompt": "{0}"}, "in braces"),
        ({"prompt": "{x.y}"}, "in braces"), ({"prompt": "{x!r}"}, "in braces"),
        ({"prompt": "{x:>9}"}, "in braces"), ({"prompt": "{x"}, "is no template"),
        ({"prompt": "{x}", "text": ("y",)}, "text is named by the prompt"),
        ({"prompt": None, "text": ("x",), "chat": True}, "chat is of a task that has a prompt"),
        ({"prompt": None, "text": ("x",), "refusal": True}, "refusal is of a task that has a"),
        ({"prompt": None, "text": ("x", "y", "z")}, "text names 3 columns"),
        ({"refusal": True}, "refusal needs two labels"),
        ({"refusal": True, "labels": ("a", "b", "c")}, "refusal needs two labels"),
        ({"answer": "("}, "is no pattern"), ({"answer": "x"}, "has one group"),
        ({"answer": "(x)", "labels": ("a", "b")}, "no labels beside it"),
        ({"max_new_tokens": 0}, "greater than 0"),
    ],
)  # fmt: skip
def test_what_is_no_template_or_of_another_kind_is_told(own, sentence):
    with pytest.raises(ValueError, match=sentence):
        task(**own)


def test_a_prompt_names_its_columns_and_may_hold_braces_of_its_own():
    of = task(prompt="{first part} {{as is}} {x}{x}")
    assert of.text == ("first part", "x")
    assert prompts.prompt_of(of, Row(0, ("{evil}", "b"), ("c",))) == "{evil} {as is} bb"
