import pytest
import tiny_models
import torch
from tiny_models import ODD, attention, batch, largest_difference
from torch import nn

from osrm_exp import statistics
from osrm_exp.statistics.layout import check_inputs, inside, layouts, outside


def gram(net, batches, modules, level="token"):
    return statistics.gram(net, batches, modules, level=level, include_padding=False)


def expected(net, data, modules):
    """One sample at a time and without padding, where no order of rows can be mistaken."""
    rows = {module: [] for module in modules}
    for ids, mask in zip(data["input_ids"], data["attention_mask"]):
        length, handles = int(mask.sum()), []

        def keep(name, args, length=length):
            if args[0].flatten(0, -2).shape[0] == length:
                rows[name].append(args[0].flatten(0, -2).double())

        for name in modules:
            hook = lambda _, args, name=name, keep=keep: keep(name, args)  # noqa: E731
            handles.append(net.get_submodule(name).register_forward_pre_hook(hook))
        net(input_ids=ids[None, :length], attention_mask=mask[None, :length])
        for handle in handles:
            handle.remove()
    return {name: torch.cat(x).mT @ torch.cat(x) / len(torch.cat(x)) for name, x in rows.items()}


@pytest.mark.parametrize("family", ODD)
def test_rows_are_counted_wherever_their_samples_lie(family):
    net, data = tiny_models.model(family), batch([7, 4, 5, 2, 6, 3, 7], 7)  # batch equals length
    modules = attention(net)
    assert largest_difference(expected(net, data, modules), gram(net, [data], modules)) < 1e-5
    found = layouts(net, modules, data)
    if family == "deberta":  # 14 relative positions: as many as two samples have tokens
        assert all(found[m] == [outside, None] for m in modules if m.endswith("query_proj"))
    else:
        order = inside if family == "xlnet" else outside
        assert all(set(found[m]) == {order} for m in modules)


def test_relative_positions_are_no_data_in_a_batch_of_one_either():
    net, data = tiny_models.model("deberta"), batch([14], 14)
    query = [m for m in attention(net) if m.endswith("query_proj")]
    assert largest_difference(expected_hidden(net, data, query), gram(net, [data], query)) < 1e-6


def expected_hidden(net, data, modules):
    """The first call of a query projection is the one on hidden states."""
    rows = {}

    def keep(module, x):
        rows.setdefault(module, x[0].double())

    handles = [
        net.get_submodule(m).register_forward_pre_hook(lambda _, args, m=m: keep(m, args[0]))
        for m in modules
    ]
    with torch.no_grad():
        net(input_ids=data["input_ids"], attention_mask=data["attention_mask"])
    for handle in handles:
        handle.remove()
    return {m: x.mT @ x / len(x) for m, x in rows.items()}


class Small(nn.Module):
    """A network of the test's own around one linear module."""

    config = None

    def __init__(self, run):
        super().__init__()
        self.inner, self.run = nn.Linear(4, 4), run

    def forward(self, **inputs):
        return self.run(self.inner, **inputs)


def test_a_model_of_patches_needs_neither_ids_nor_mask():
    net = Small(lambda inner, pixels: inner(pixels.flatten(2).mT)).eval()
    pixels = torch.randn(3, 4, 2, 5)
    rows = pixels.flatten(2).mT.flatten(0, 1).double()
    found = gram(net, [{"pixels": pixels}], ["inner"])["inner"]
    torch.testing.assert_close(found, rows.mT @ rows / 30)


def test_lists_are_tensors_and_what_is_none_is_refused():
    net = Small(lambda inner, x: inner(x)).eval()
    x = torch.randn(2, 3, 4)
    one, other = (gram(net, [{"x": form}], ["inner"])["inner"] for form in (x, x.tolist()))
    torch.testing.assert_close(one, other)
    for wrong in (["a text", "another"], [[1.0], [1.0, 2.0]], None):
        with pytest.raises(ValueError, match=r"'x' of a batch is a .* no tensor"):
            gram(net, [{"x": wrong}], ["inner"])


def test_routed_rows_are_refused_by_name_before_anything_is_collected():
    net = Small(lambda inner, x: inner(x[x[..., 0] > 0])).eval()
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="inner is fed rows that cannot be told apart by sample"):
        check_inputs(net, ["inner"], {"x": torch.randn(4, 6, 4)})


def test_a_router_has_a_gram_and_no_fisher():
    """Of transformers 5, whose router gives scores and indices; before that it was linear."""
    net, data = tiny_models.model("mixtral"), batch([7, 4, 5], 7)
    gates = [module for module in attention(net) if module.endswith("gate")]
    assert len(gates) == 2
    assert largest_difference(expected(net, data, gates), gram(net, [data], gates)) < 1e-5
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.gate gives a tuple.* no linear module"):
        statistics.fisher(net, [data], gates, mode="exact")


def test_what_does_not_depend_on_the_batch_is_no_data():
    constant = torch.randn(8, 4)
    net = Small(lambda inner, x: inner(constant)).eval()
    with pytest.raises(ValueError, match="no batch reached inner"):
        check_inputs(net, ["inner"], {"x": torch.randn(4, 2, 4)})


def test_a_mask_that_does_not_fit_is_told_by_one_batch():
    net = Small(lambda inner, x, attention_mask: inner(x[:, ::2])).eval()
    data = {"x": torch.randn(4, 6, 4), "attention_mask": torch.ones(4, 6)}
    with pytest.raises(ValueError, match=r"inner has input \[4, 3, 4\].*mask \[4, 6\]"):
        check_inputs(net, ["inner"], data)


def test_a_batch_of_one_token_is_data():
    net = Small(lambda inner, x: inner(x)).eval()
    found = gram(net, [{"x": torch.ones(1, 1, 4)}], ["inner"])["inner"]
    torch.testing.assert_close(found, torch.ones(4, 4, dtype=torch.float64))


def test_a_network_runs_no_further_than_to_the_last_input():
    reached = []
    net = Small(lambda inner, x: reached.append(inner(x)))
    gram(net.eval(), [{"x": torch.randn(2, 3, 4)}] * 5, ["inner"])
    assert len(reached) == 2  # the two runs that tell the layout
