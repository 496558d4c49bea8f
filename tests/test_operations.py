"""What a thing costs, told by what it does and never by a clock: products, modules, decompositions,
and the largest tensor that it makes."""

from contextlib import contextmanager

import pytest
import tiny_models
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from osrm_exp import merging, statistics
from osrm_exp.lora import Dense, LowRank, stack
from osrm_exp.placing import applied
from osrm_exp.statistics import sums
from osrm_exp.training.module import LoraFineTuning

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear")


class Counted(TorchDispatchMode):
    """Counts products of matrices, and keeps the bytes of the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.products += function.overloadpacket.__name__ in PRODUCTS
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, torch.Tensor):
                self.largest = max(self.largest, one.numel() * one.element_size())
        return out


@contextmanager
def called(net):
    """How often linear modules of a network are."""
    calls = []
    modules = [module for module in net.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_hook(lambda *_: calls.append(1)) for module in modules]
    yield calls
    for hook in hooks:
        hook.remove()


@pytest.fixture
def net():
    return tiny_models.model("roberta").requires_grad_(False)


def products(net, updates):
    data = {k: v for k, v in tiny_models.batch([5, 3], 5).items() if k != "labels"}
    with applied(net, updates), torch.no_grad(), Counted() as counted:
        net(**data)
    return counted.products


def test_an_evaluated_candidate_forms_the_products_of_a_bare_forward(net):
    modules = tiny_models.attention(net)
    shapes = {name: net.get_submodule(name).weight.shape for name in modules}
    dense = {name: Dense(torch.ones(shape)) for name, shape in shapes.items()}
    factors = {n: LowRank(torch.ones(2, i), torch.ones(o, 2)) for n, (o, i) in shapes.items()}
    assert products(net, dense) == products(net, {})
    assert products(net, factors) == products(net, {})  # where they would cost much beside it


def test_a_gram_runs_as_far_as_its_last_module_and_forms_half_a_product_an_input(net, monkeypatch):
    modules = [name for name in tiny_models.attention(net) if ".layer.0." in name]
    batches, formed = [tiny_models.batch([5, 3], 5)] * 3, []
    original = sums.dsyrk
    monkeypatch.setattr(sums, "dsyrk", lambda *a, **k: formed.append(1) or original(*a, **k))
    how = {"level": "token", "include_padding": False}
    with called(net) as calls:
        statistics.gram(net, batches, modules, **how)
    with called(net) as whole, torch.no_grad():
        net(**{k: v for k, v in batches[0].items() if k != "labels"})
    assert len(formed) == len(batches)  # query, key and value are fed one tensor
    assert len(calls) == 2 * len(whole) + len(batches) * (len(modules) - 1)  # layouts, then each


def test_a_gram_needs_no_second_matrix_of_its_size():
    total = torch.zeros(1024, 1024, dtype=torch.float64)
    with Counted() as counted:
        sums.mirrored(sums.reduced(sums.add_squares(total, torch.ones(8, 1024).double()), 8, None))
    assert counted.largest <= total.numel() * total.element_size()
    place = total.data_ptr()
    assert sums.mirrored(sums.reduced(total, 1, None)).data_ptr() == place


LOW_RANK = {
    "task_arithmetic": {"space": "delta", "scaling": 0.3},
    "ties": {"space": "knots", "density": 0.2, "granularity": "tensor", "counting": "exact",
             "total_parameters": None, "merge": "mean", "scaling": 1.0},
    "iso_c": {"space": "delta", "scaling": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("name", LOW_RANK)
def test_a_low_rank_merge_forms_no_delta(name):
    tasks, rank, width = 4, 2, 512
    each = [LowRank(torch.randn(rank, width), torch.randn(width, rank)) for _ in range(tasks)]
    with Counted() as counted:
        update = getattr(merging, name)({"w": stack(each)}, **LOW_RANK[name])["w"]
    assert update.rank == tasks * rank
    assert counted.largest < width**2  # a quarter of one delta's bytes, in float32


def test_a_step_of_fine_tuning_costs_two_forwards(cell):
    from peft import LoraConfig, get_peft_model

    chosen = cell("roberta")
    net = tiny_models.model("roberta").train()
    config = LoraConfig(r=1, target_modules=["query", "value"], lora_dropout=0.0)
    module = LoraFineTuning(get_peft_model(net, config), chosen.tasks[0], chosen.tuning)
    data = tiny_models.batch([9, 9], 9)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        net(**{k: v for k, v in data.items() if k != "labels"})
    with FlopCounterMode(display=False) as step:
        outputs, labels = module.task.kind.forward(module.net, data)
        module.task.kind.loss(outputs, labels).backward()
    assert step.get_total_flops() <= 2.15 * forward.get_total_flops()
