import gc
import weakref

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from osrm_exp.bench import Bench
from osrm_exp.lazy import Lazy
from osrm_exp.lora import Dense, LowRank, Result
from osrm_exp.placing import applied


def linear(width=6, out=4, **how):
    torch.manual_seed(0)
    return nn.Linear(width, out, **how).requires_grad_(False)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("rank", [None, 3])
def test_an_update_stands_in_the_weight_and_leaves_it_as_it_was(turned, rank):
    net = nn.ModuleDict({"layer": Conv1D(4, 6) if turned else linear()}).requires_grad_(False)
    layer, x = net["layer"], torch.randn(3, 6)
    base, bits, plain = layer.weight, layer.weight.clone(), layer(x)
    factors = LowRank(torch.randn(rank or 3, 6), torch.randn(4, rank or 3))
    with applied(net, {"layer": factors if rank else Dense(factors.delta)}):
        assert not layer._forward_hooks and layer.weight is not base
        torch.testing.assert_close(layer(x), plain + x @ factors.delta.T)
    assert layer.weight is base and torch.equal(base, bits) and torch.equal(layer(x), plain)


def test_a_weight_that_two_modules_share_changes_for_one_of_them():
    net = nn.ModuleDict({"one": linear(), "other": linear()})
    net["other"].weight = net["one"].weight
    x, plain = torch.randn(2, 6), net["other"](torch.zeros(2, 6))
    with applied(net, {"one": Dense(torch.ones(4, 6))}):
        assert not torch.allclose(net["one"](x), net["other"](x))
    assert torch.equal(net["other"](torch.zeros(2, 6)), plain)


@pytest.mark.parametrize(
    "layer, update",
    [
        (linear(64, 64), LowRank(torch.randn(2, 64), torch.randn(64, 2))),
        (linear(), LowRank(torch.randn(2, 6, requires_grad=True), torch.randn(4, 2))),
        (linear(), Dense(torch.randn(4, 6, requires_grad=True))),
        (linear(dtype=torch.bfloat16), Dense(torch.randn(4, 6))),
        (linear().requires_grad_(), Dense(torch.randn(4, 6))),
    ],
    ids=[
        "cheap factors",
        "factors that learn",
        "numbers that learn",
        "a coarse weight",
        "a weight that is trained",
    ],
)
def test_what_stays_beside_the_weight(layer, update):
    net = nn.ModuleDict({"layer": layer})
    base = layer.weight
    x = torch.randn(3, layer.in_features, dtype=base.dtype)
    with applied(net, {"layer": update}):
        assert layer.weight is base and len(layer._forward_hooks) == 1
        expected = nn.functional.linear(x, base, layer.bias).float() + x.float() @ update.delta.mT
        torch.testing.assert_close(layer(x), expected.to(x.dtype))
    assert not layer._forward_hooks


def test_an_error_puts_everything_back():
    net, head = nn.ModuleDict({"layer": linear(), "head": linear()}), linear()
    base, own = net["layer"].weight, net["head"]
    with pytest.raises(KeyError), applied(net, {"layer": Dense(torch.ones(4, 6))}, {"head": head}):
        assert net["head"] is head
        raise KeyError
    assert net["layer"].weight is base and net["head"] is own


def test_updates_lie_within_each_other():
    net = nn.ModuleDict({"layer": linear()})
    base, update = net["layer"].weight, Dense(torch.ones(4, 6))
    with applied(net, {"layer": update}), applied(net, {"layer": update}):
        torch.testing.assert_close(net["layer"].weight, base + 2)
    assert net["layer"].weight is base


def test_a_dense_result_is_held_by_the_weights_alone():
    bench, alive, most = object.__new__(Bench), weakref.WeakSet(), 0
    bench.net = nn.ModuleDict({str(i): linear() for i in range(4)})
    bench.heads = [{}]

    def one(_):
        nonlocal most
        delta = torch.ones(4, 6)
        alive.add(delta)
        most = max(most, len(alive))
        return Dense(delta)

    result = Result(Lazy(bench.net.keys(), one))
    with bench.placed(result) as network, network(0) as net:
        gc.collect()
        assert not alive and most == 1
        assert all(not layer._forward_hooks for layer in net.values())
    assert result.form == "shared, dense" and result.seconds > 0
