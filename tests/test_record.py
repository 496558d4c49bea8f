import pytest

from osrm_exp.record import Record, build, meaning


class Thing(Record):
    name: str = "unnamed"
    size: float
    parts: dict[str, int] = {}


def test_a_default_and_a_spelling_are_no_part_of_an_address():
    assert Thing(size=1.0).address() == {"size": 1}
    assert Thing(size=1, name="unnamed", parts={}).digest == Thing(size=1.0).digest
    assert Thing(size=2).digest != Thing(size=1).digest != Thing(size=1, name="other").digest
    assert (
        Thing(size=1, parts={"a": 1, "b": 2}).digest == Thing(size=1, parts={"b": 2, "a": 1}).digest
    )


def test_a_field_that_is_added_later_moves_no_address():
    class Later(Record):
        name: str = "unnamed"
        size: float
        parts: dict[str, int] = {}
        speed: float | None = None

    Later.__name__ = "Thing"
    assert Later(size=3).digest == Thing(size=3).digest
    assert Later(size=3, speed=1).digest != Thing(size=3).digest


def test_a_truth_value_is_not_a_number():
    assert meaning([True, 1.0, 0.5, (2.0,)]) == [True, 1, 0.5, [2]]
    assert meaning(True) is True


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"size": "abc"}, r"thing\.size: .*number.* \(got 'abc'\)"),
        ({"size": 1, "colour": 2}, "thing.colour is not an option; thing has: name, size, parts"),
        ({}, "thing.size: Field required"),
        ({"size": 1, "parts": {"a": "x"}}, r"thing\.parts\.a: .* \(got 'x'\)"),
    ],
)
def test_a_wrong_field_is_named_in_one_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        build(Thing, fields, "thing")
    assert "\n" not in str(caught.value)
