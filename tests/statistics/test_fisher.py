import pytest
import tiny_models
import torch
from tiny_models import FAMILIES, ODD, attention, batch, largest_difference, rows_of
from transformers import LlamaConfig, LlamaForCausalLM

from osrm_exp import statistics

LENGTHS = [7, 4, 5, 2]  # the first sample is as long as the batch


def reference_fisher(net, data, modules, mode):
    """By the definition: gradients of the weights, one example and one label at a time."""
    weights = [net.get_submodule(m).weight.requires_grad_() for m in modules]
    total = [torch.zeros_like(w) for w in weights]
    for row in range(len(data["labels"])):
        one = rows_of(data, slice(row, row + 1))
        logits = net(one["input_ids"], one["attention_mask"]).logits
        log_p = logits.log_softmax(-1)[0]
        if logits.shape[1] == 1:
            scores = [(1.0, (logits[0, 0] - one["labels"][0]) ** 2)]
        elif mode == "empirical":
            scores = [(1.0, log_p[one["labels"][0]])]
        else:
            scores = [(p.exp().item(), p) for p in log_p]
        for weight, score in scores:
            gradients = torch.autograd.grad(score, weights, retain_graph=True)
            total = [t + weight * g**2 for t, g in zip(total, gradients)]
    for w in weights:
        w.requires_grad_(False)
    return {m: t / len(data["labels"]) for m, t in zip(modules, total)}


@pytest.mark.parametrize(
    "family, mode, labels",
    [(f, *how) for f in FAMILIES for how in (("exact", 3), ("empirical", 3), ("exact", 1))]
    + [(family, "exact", 3) for family in ODD],
)
def test_fisher_is_the_mean_squared_gradient_of_each_example(family, mode, labels):
    net, data = tiny_models.model(family, labels), batch(LENGTHS, 7)
    modules = [m for m in attention(net) if not m.endswith(".gate")]  # a router has none
    expected = reference_fisher(net, data, modules, mode)
    found = statistics.fisher(net, [data], modules, mode=mode)
    assert largest_difference(expected, found) < 1e-4
    parts = [rows_of(data, slice(0, 3)), rows_of(data, slice(3, 4))]
    assert largest_difference(found, statistics.fisher(net, parts, modules, mode=mode)) < 1e-4


def test_mergelm_fisher_squares_what_it_should_not():
    net, data = tiny_models.model("roberta"), batch(LENGTHS, 7)
    modules = attention(net)
    weight = net.get_submodule(modules[0]).weight.requires_grad_()
    log_p = net(data["input_ids"], data["attention_mask"]).logits.log_softmax(-1)
    (gradient,) = torch.autograd.grad((log_p.exp().detach().sqrt() * log_p).sum(), weight)
    weight.requires_grad_(False)
    found = statistics.fisher(net, [data], modules, mode="mergelm")
    torch.testing.assert_close(found[modules[0]], gradient**2 / 4, rtol=1e-4, atol=0)
    exact = statistics.fisher(net, [data], modules, mode="exact")
    assert largest_difference(exact, found) > 0.5
    parts = [rows_of(data, slice(0, 2)), rows_of(data, slice(2, 4))]
    split = statistics.fisher(net, parts, modules, mode="mergelm")
    assert largest_difference(found, split) > 0.05


def test_fisher_is_of_the_weight_with_its_update():
    data = batch(LENGTHS, 7)
    net, merged = tiny_models.model("llama"), tiny_models.model("llama")
    modules = attention(net)
    handles = []
    for name in modules:
        weight = merged.get_submodule(name).weight
        delta = 0.1 * torch.randn_like(weight)
        weight.add_(delta)
        handles.append(
            net.get_submodule(name).register_forward_hook(
                lambda _, x, y, delta=delta: y + x[0] @ delta.T
            )
        )
    plain = statistics.fisher(merged, [data], modules, mode="exact")
    hooked = statistics.fisher(net, [data], modules, mode="exact")
    assert largest_difference(plain, hooked) < 1e-4


def test_fisher_says_what_it_needs():
    net, data = tiny_models.model("roberta"), batch(LENGTHS, 7)
    modules = attention(net)
    with pytest.raises(ValueError, match="mode is 'hard'"):
        statistics.fisher(net, [data], modules, mode="hard")
    del data["labels"]
    statistics.fisher(net, [data], modules, mode="exact")
    with pytest.raises(ValueError, match="needs `labels`"):
        statistics.fisher(net, [data], modules, mode="empirical")
    with pytest.raises(ValueError, match="needs `labels`"):
        statistics.fisher(tiny_models.model("roberta", 1), [data], modules, mode="exact")
    with pytest.raises(ValueError, match="where they are texts"):
        text = tiny_models.model("t5_text")
        statistics.fisher(
            text, [{**data, "decoder_input_ids": data["input_ids"]}], attention(text), mode="exact"
        )


def reference_output_gram(net, data, modules, mode):
    """By the definition: gradients of what is added to an output, one example at a time."""
    rows = {m: [] for m in modules}
    for row, length in enumerate(LENGTHS):
        one = rows_of(data, slice(row, row + 1))
        added, handles = {}, []

        def add(m, y, added=added):
            added[m] = torch.zeros_like(y, requires_grad=True)
            return y + added[m]

        for m in modules:
            hook = lambda _, __, y, m=m, add=add: add(m, y)  # noqa: E731
            handles.append(net.get_submodule(m).register_forward_hook(hook))
        logits = net(one["input_ids"], one["attention_mask"]).logits
        log_p = logits.log_softmax(-1)[0]
        if logits.shape[1] == 1:
            scores = [(1.0, (logits[0, 0] - one["labels"][0]) ** 2)]
        elif mode == "empirical":
            scores = [(1.0, log_p[one["labels"][0]])]
        else:
            scores = [(p.exp().item(), p) for p in log_p]
        for weight, score in scores:
            found = torch.autograd.grad(score, [added[m] for m in modules], retain_graph=True)
            for m, g in zip(modules, found):
                rows[m].append(weight**0.5 * g.flatten(0, -2)[:length].double())
        for handle in handles:
            handle.remove()
    return {m: torch.cat(g).T @ torch.cat(g) / sum(LENGTHS) for m, g in rows.items()}


@pytest.mark.parametrize(
    "family, mode, labels",
    [(f, *how) for f in FAMILIES for how in (("exact", 3), ("empirical", 3), ("empirical", 1))]
    + [("xlnet", "exact", 3)],
)
def test_output_gram_is_the_second_moment_of_the_real_tokens_gradients(family, mode, labels):
    net, data = tiny_models.model(family, labels), batch(LENGTHS, 7)
    modules = attention(net)
    expected = reference_output_gram(net, data, modules, mode)
    options = {"mode": mode, "include_padding": False}
    found = statistics.output_gram(net, [data], modules, **options)
    assert all(g.dtype == torch.float64 for g in found.values())
    assert largest_difference(expected, found) < 1e-4
    parts = [rows_of(data, slice(0, 3)), rows_of(data, slice(3, 4))]
    assert largest_difference(found, statistics.output_gram(net, parts, modules, **options)) < 1e-4


def test_padding_only_enlarges_the_count_of_an_output_gram_that_it_does_not_reach():
    net, data = tiny_models.model("roberta"), batch(LENGTHS, 7)
    modules = [m for m in attention(net) if m.endswith("query")]
    one, other = (
        statistics.output_gram(net, [data], modules, mode="exact", include_padding=padding)
        for padding in (False, True)
    )
    for module in modules:
        torch.testing.assert_close(other[module] * 28, one[module] * sum(LENGTHS))


def test_output_gram_says_what_it_needs():
    net, data = tiny_models.model("roberta"), batch(LENGTHS, 7)
    with pytest.raises(ValueError, match="mode is 'mergelm': expected 'exact' or 'empirical'"):
        statistics.output_gram(net, [data], attention(net), mode="mergelm", include_padding=False)
    del data["labels"]
    with pytest.raises(ValueError, match="needs `labels`"):
        statistics.output_gram(net, [data], attention(net), mode="empirical", include_padding=False)


def test_the_fisher_of_a_written_response_is_that_of_its_summed_log_likelihood():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    net = LlamaForCausalLM(LlamaConfig(vocab_size=20, num_attention_heads=2, **size)).eval()
    name, ids = "model.layers.0.self_attn.q_proj", torch.randint(1, 20, (3, 7))
    labels = ids.masked_fill(torch.arange(7) < torch.tensor([[3], [5], [2]]), -100)
    data = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    expected = torch.zeros_like(net.get_submodule(name).weight)
    for one, response in zip(ids[:, None], labels):
        log_p = net(input_ids=one).logits[0].log_softmax(-1)
        places = (response != -100).nonzero()[:, 0]
        total = sum(log_p[p - 1, response[p]] for p in places)
        (gradient,) = torch.autograd.grad(total, net.get_submodule(name).weight)
        expected += gradient**2 / len(ids)
    found = statistics.fisher(net, [data], [name], mode="empirical")[name]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)
    with pytest.raises(ValueError, match="sums over all answers, which are too many"):
        statistics.fisher(net, [data], [name], mode="exact")
