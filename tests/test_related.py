"""Adapters that have nothing to do with each other."""

import pytest
import torch

from osrm_exp.adapter import stacked, write_adapter
from osrm_exp.lora import LowRank
from osrm_exp.merging import merge


def updates(*names: str, width: int = 5) -> dict[str, LowRank]:
    return {name: LowRank(torch.randn(2, width), torch.randn(3, 2)) for name in names}


def test_two_that_share_no_module_are_refused_by_name_with_the_prefix_that_parts_them():
    plain = updates("model.layers.0.q", "model.layers.1.q")
    inner = updates("model.language_model.layers.0.q", "model.language_model.layers.1.q")
    with pytest.raises(ValueError) as caught:
        stacked([plain, plain, inner], ["a", "b", "c"])
    assert str(caught.value) == (
        "a and c share no module: the nearest are model.layers.0.q and "
        "model.language_model.layers.0.q, with the prefixes 'model.' and 'model.language_model.'; "
        "merge adapters of one base model, or rename a prefix"
    )
    with pytest.raises(ValueError, match=r"adapter 1 and adapter 2 .*: layers.0.q and h.c_attn"):
        stacked([updates("layers.0.q"), updates("h.c_attn")])


def test_the_pair_counts_not_the_sum():
    chain = [updates("q"), updates("q", "v"), updates("v")]
    with pytest.raises(ValueError, match="adapter 1 and adapter 3 share no module"):
        stacked(chain)
    assert stacked(chain[:2]).keys() == {"q", "v"}


def test_an_adapter_without_an_update_and_deltas_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="adapter 2 has no update"):
        stacked([updates("q"), {}])
    with pytest.raises(ValueError, match=r"q is \(3, 5\) .* adapter 1 and \(3, 7\) in adapter 2"):
        stacked([updates("q"), updates("q", width=7)])


def test_another_base_is_a_warning_of_ours(tmp_path):
    for name, base in {"a": "org/one", "b": "org/two", "c": "org/one", "d": None}.items():
        write_adapter(tmp_path / name, updates("q"), base_model_name_or_path=base)
    with pytest.warns(UserWarning, match=r"a was trained on org/one and .*b on org/two") as caught:
        merge("average", [tmp_path / name for name in "acb"])
    assert caught[0].filename == __file__
    merge("average", [tmp_path / name for name in "acd"])
