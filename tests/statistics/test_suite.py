import copy

import pytest
import torch

from osrm_exp import needs
from osrm_exp.adapter import read_adapter
from osrm_exp.artifacts.statistic import read_statistic
from osrm_exp.bench import Bench
from osrm_exp.lora import LowRank
from osrm_exp.merging import regmean_pp
from osrm_exp.statistics import suite

SOLVE = {"off_diagonal": 0.95, "ridge": 1e-6, "weights": None}


@pytest.fixture
def bench(cell, workshop):
    """`bench(family)` over freshly drawn adapters: the trained ones, with a real B."""

    def build(family, *overrides):
        chosen = cell(family, "tuning.epochs=1", "dataset.only=[cola,stsb]", *overrides)
        tunes = [needs.fine_tune(chosen, task) for task in chosen.tasks]
        adapters = [read_adapter(f) for f in workshop.store.get_all(tunes, workshop)]
        made = Bench(chosen, adapters, workshop)
        g = torch.Generator().manual_seed(0)
        made.updates = {
            name: LowRank(u.A, torch.randn(u.B.shape, generator=g) * 0.3)
            for name, u in made.updates.items()
        }
        return made

    return build


@pytest.mark.parametrize(
    ("family", "layers"),
    [("bert", ["layer.0.", "layer.1."]), ("roberta", ["layer.0.", "layer.1."]),
     ("llama", ["layers.0.", "layers.1."]),
     ("t5", ["encoder.block.0.", "encoder.block.1.", "decoder.block.0.", "decoder.block.1."])],
)  # fmt: skip
def test_blocks_are_the_numbered_layers_in_the_order_of_the_network(bench, family, layers):
    made = bench(family)
    blocks = suite.MergedPrefix(made, level="token", samples=4).blocks
    assert sorted(m for block in blocks for m in block) == sorted(made.updates)
    assert len(blocks) == len(layers)
    for block, layer in zip(blocks, layers):
        assert all(layer in module for module in block)
    assert family != "t5" or [len(block) for block in blocks] == [2, 2, 4, 4]


def test_blocks_count_beyond_nine_and_leave_the_rest_out():
    net = torch.nn.ModuleDict({
        "layers": torch.nn.ModuleList(
            torch.nn.ModuleDict({"q": torch.nn.Linear(2, 2)}) for _ in range(12)
        ),
        "embed": torch.nn.Linear(2, 2),
    })  # fmt: skip
    names = sorted(name for name, m in net.named_modules() if isinstance(m, torch.nn.Linear))
    assert suite.blocks_of(net, names) == [[f"layers.{i}.q"] for i in range(12)]
    assert suite.blocks_of(net, ["embed"]) == []


def inputs_of_weights(net, weights, batches, modules):
    """Second moments of the modules' real inputs with `weights` added for good: the plain way."""
    net = copy.deepcopy(net)
    rows = {module: [] for module in modules}
    masks = []
    for name, update in weights.items():
        net.get_submodule(name).weight.data += update.delta
    for module in modules:
        net.get_submodule(module).register_forward_pre_hook(
            lambda _, args, m=module: rows[m].append(args[0][masks[-1]])
        )
    for batch in batches:
        masks.append(batch["attention_mask"].bool())
        with torch.no_grad():
            net(**{k: v for k, v in batch.items() if k != "labels"})
    found = {m: torch.cat(x).double() for m, x in rows.items()}
    return {m: x.mT @ x / len(x) for m, x in found.items()}


@pytest.mark.parametrize("family", ["roberta", "llama", "t5"])
def test_grams_stand_behind_the_merged_layers_and_within_the_experts_own(bench, family):
    made = bench(family)
    ask = suite.MergedPrefix(made, level="token", samples=12)
    experts = suite.experts(made)
    merged = {m: experts[0][m] * 0.5 for m in ask.blocks[0]}
    block = [m for m in ask.blocks[1] if m.endswith(("query", "q_proj", "SelfAttention.q"))]
    grams = ask(merged, ask.blocks[1])
    assert set(grams) == set(ask.blocks[1])
    for task, data in enumerate(made.data):
        batches = data.batches("train", 5, 12)
        weights = {**merged, **{m: experts[task][m] for m in ask.blocks[1]}}
        expected = inputs_of_weights(made.net, weights, batches, block)
        without = inputs_of_weights(made.net, {}, batches, block)
        for module in block:
            torch.testing.assert_close(grams[module][task], expected[module], rtol=1e-4, atol=1e-5)
            assert not torch.allclose(grams[module][task], without[module], rtol=1e-2)


def test_the_first_block_is_met_as_its_own_expert_meets_it(cell, workshop):
    chosen = cell("roberta", "tuning.epochs=1", "dataset.only=[cola,stsb]", "merge=regmean")
    tunes = [needs.fine_tune(chosen, task) for task in chosen.tasks]
    adapters = [read_adapter(f) for f in workshop.store.get_all(tunes, workshop)]
    made = Bench(chosen, adapters, workshop)
    ask = suite.MergedPrefix(made, level="token", samples=256)
    grams = ask({}, ask.blocks[0])
    how = chosen.merge.statistics["gram"]
    for t, (task, tune) in enumerate(zip(chosen.tasks, tunes)):
        own = needs.statistic(chosen, task, how, tune)
        stored = read_statistic(workshop.store.get(own, workshop))
        for module in ask.blocks[0]:
            torch.testing.assert_close(grams[module][t], stored[module], rtol=1e-5, atol=1e-8)


def test_an_answer_leaves_no_trace_and_later_blocks_have_no_say(bench):
    made = bench("roberta")
    ask = suite.MergedPrefix(made, level="token", samples=8)
    batch = {k: v for k, v in ask.batches[0][0].items() if k != "labels"}
    before = made.net(**batch).logits
    first = ask({}, ask.blocks[0])
    later = {m: suite.experts(made)[0][m] for m in ask.blocks[1]}
    again = ask(later, ask.blocks[0])
    assert all(torch.equal(first[m], again[m]) for m in first)
    assert torch.equal(made.net(**batch).logits, before)


def test_regmean_pp_on_the_networks_differs_from_regmean(bench):
    made = bench("roberta")
    ask = suite.MergedPrefix(made, level="token", samples=16)
    merged = regmean_pp(made.updates, ask, **SOLVE)
    assert list(merged) == list(made.updates)
    alone = regmean_pp(made.updates, Unmerged(ask), **SOLVE)
    for module in ask.blocks[0]:
        torch.testing.assert_close(merged[module].delta, alone[module].delta)
    assert any(
        not torch.allclose(merged[m].delta, alone[m].delta, rtol=1e-3) for m in ask.blocks[1]
    )


class Unmerged:
    """The same grams with nothing merged before a block."""

    def __init__(self, ask):
        self.ask, self.blocks = ask, ask.blocks

    def __call__(self, merged, modules):
        return self.ask({}, modules)


def test_losses_are_those_of_each_expert_over_all_tasks(bench):
    made = bench("roberta")
    found = suite.losses(made, samples=6, base=True)
    assert found.shape == (3,) and found.dtype == torch.float64
    for t, expert in enumerate([*suite.experts(made), {}]):
        net, expected = copy.deepcopy(made.net), []
        for name, update in expert.items():
            net.get_submodule(name).weight.data += update.delta
        for data, head in zip(made.data, made.heads):
            assert data.tune
            for path, module in head.items():
                net.set_submodule(path, module)
            rows = data.batches("tune", 1, 6)
            labels = torch.cat([batch.pop("labels") for batch in rows])
            scores = torch.cat([net(**batch).logits for batch in rows])
            if data.task.labels:
                picked = scores.log_softmax(-1)[torch.arange(len(labels)), labels]
                expected.append(-picked.mean().item())
            else:
                expected.append(((scores[:, 0] - labels) ** 2).mean().item())
        assert found[t].item() == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert suite.losses(made, samples=6, base=False).tolist() == found[:2].tolist()


def test_without_a_held_out_slice_losses_are_of_training_rows(bench):
    made = bench("roberta", "protocol=paper", "protocol.holdout=0.0")
    assert not made.data[0].tune
    assert suite.losses(made, samples=6, base=False).isfinite().all()
