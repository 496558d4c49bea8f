import pytest

from osrm_exp.call import Call, split
from osrm_exp.merging import merge
from osrm_exp.record import build
from osrm_exp.spec import Merge

OPTIONS = {"space": "delta", "scaling": 0.3}


def call(target="osrm_exp.merging.task_arithmetic", **options):
    return Call(target=target, options={**OPTIONS, **options})


def test_the_module_that_a_function_lies_in_is_no_part_of_its_address():
    moved = call("osrm_exp.merging.linear.task_arithmetic")
    assert moved.digest == call().digest and moved.function is call().function
    assert call().name == "osrm_exp:task_arithmetic"


def test_another_package_function_option_or_version_is_another_address():
    others = [
        call("somebody.merging.task_arithmetic"), call("osrm_exp.merging.average"),
        call(scaling=0.5), Call(target=call().target, options=OPTIONS, version=2),
    ]  # fmt: skip
    assert len({one.digest for one in [call(), *others]}) == 5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scaling": "abc"}, r"merge\.scaling: .*number \(got 'abc'\)"),
        ({"scaling": "0.3"}, r"merge\.scaling"),
        ({"scaling": None}, r"merge\.scaling"),
        ({"momentum": 1}, "merge task_arithmetic: .*'momentum'; it takes: space, scaling"),
    ],
)
def test_a_wrong_option_is_refused_by_name_and_type(options, sentence):
    call(scaling=1).check("merge", 1)  # a whole number is a number
    with pytest.raises(ValueError, match=sentence) as caught:
        call(**options).check("merge", 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["osrm_exp.merging.nope", "nowhere.at.all", "osrm_exp", ""])
def test_an_unknown_function_is_one_sentence(target):
    with pytest.raises(ValueError, match="merge: ") as caught:
        call(target).check("merge", 1)
    assert "\n" not in str(caught.value)


def test_a_config_splits_into_a_call_and_what_is_the_callers():
    config = {"_target_": "a.b", "x": 1, "samples": 3, "version": 2}
    found, own = split(config, {"samples", "of"})
    assert found == Call(target="a.b", options={"x": 1}, version=2) and own == {"samples": 3}
    assert split({"_target_": None, "samples": 3}, {"samples"}) == (None, {"samples": 3})


def test_options_need_a_function_and_hold_none():
    with pytest.raises(ValueError, match="x is not an option"):
        split({"_target_": None, "x": 1}, ())
    with pytest.raises(ValueError, match="x holds a _target_ of its own"):
        split({"_target_": "a.b", "x": [{"_target_": "os.system"}]}, ())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, float("-inf")]])
def test_a_number_that_is_none_is_refused_wherever_a_method_is_called(value):
    with pytest.raises(ValueError, match=r"merge\.scaling is not finite"):
        merge("task_arithmetic", [], scaling=value)
    with pytest.raises(ValueError, match=r"merge\.grid\.scaling is not finite"):
        fields = {"space": "delta", "scaling": 1.0, "grid": {"scaling": [0.5, value]}}
        build(Merge, {"_target_": "osrm_exp.merging.task_arithmetic", **fields}, "").check()


@pytest.mark.parametrize(
    "method, option",
    [("average", {"space": []}), ("ctm_ta", {"scaling": "x"}), ("ctm_ties", {"density": None}),
     ("ctm_ties", {"sweeps": 1.5}), ("ctm_ties", {"counting": {}})],
)  # fmt: skip
def test_what_a_decorator_adds_or_keeps_is_typed_too(method, option):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"^merge.{name}: Input should be") as caught:
        merge(method, [], **option)
    assert repr(value) in str(caught.value)
