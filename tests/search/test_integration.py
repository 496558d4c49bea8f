"""Depth-wise integration: what is made of the layers, on a tiny network in memory."""

from types import SimpleNamespace

import pytest
import torch
from conftest import WRITTEN
from synthetic import adapters
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from osrm_exp import pipeline
from osrm_exp.depth import restacked
from osrm_exp.export.files import export
from osrm_exp.placing import applied
from osrm_exp.search import Integration
from osrm_exp.search.family import Scene

TASKS = ("a", "b", "c")
SIZE = dict(
    vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
)


def network(kind=LlamaForCausalLM):
    torch.manual_seed(0)
    config = {LlamaForCausalLM: LlamaConfig, BertForSequenceClassification: BertConfig}[kind]
    return kind(config(**SIZE, max_position_embeddings=16)).eval()


def family(net, *, tasks=TASKS, wanted=True) -> Integration:
    ends = ("q_proj", "query")
    names = [name for name, _ in net.named_modules() if name.endswith(ends)]
    shapes = dict.fromkeys(names, (8, 8))
    updates = adapters((2,) * len(tasks), shapes=shapes, dtype=torch.float32)
    scene = Scene(updates, lambda s, _: s, list(tasks), SimpleNamespace(net=net))
    return Integration(scene, allow_depth_change=wanted)


def answers(net, updates, stacked=None):
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        if stacked is None:
            with applied(net, updates):
                return net(input_ids=ids).logits
        with restacked(net, stacked), applied(net, updates):
            return net(input_ids=ids).logits


def made(one: Integration, **changed):
    point = {**one.starts[0], **{name.replace("_", "/"): v for name, v in changed.items()}}
    return one.outcome({}, one.read(point))


@pytest.mark.parametrize("kind", [LlamaForCausalLM, BertForSequenceClassification])
def test_one_alone_is_that_expert(kind):
    net = network(kind)
    one = family(net)
    for task, start in enumerate(one.starts):
        found = one.outcome({}, one.read(start))
        expert = {module: stack.task(task) for module, stack in one.scene.updates.items()}
        expected = answers(net, expert)
        assert torch.equal(answers(net, found.updates, found.stacked), expected)
    assert len(one.starts) == 3 and not torch.equal(expected, answers(net, {}))


def test_layers_of_nobody_are_the_base_models():
    net = network()
    one = family(net)
    found = made(one, layer0_a=False, layer1_a=False)
    assert found.updates == {}
    assert torch.equal(answers(net, found.updates, found.stacked), answers(net, {}))


def test_versions_come_in_their_order_and_the_scale_behind_the_last():
    net = network()
    one = family(net)
    found = made(one, layer0_c=True, layer0_order="c b a", layer0_scale=0.5)
    assert found.stacked.layers == ((0, 1.0), (0, 0.5), (1, 1.0))
    q = "model.layers.{}.self_attn.q_proj"
    wanted = [(0, 2), (0, 0), (1, 0)]  # which layer's update, of which task
    assert list(found.updates) == [q.format(place) for place in range(3)]
    for place, (source, task) in enumerate(wanted):
        update, stack = found.updates[q.format(place)], one.scene.updates[q.format(source)]
        assert torch.equal(update.delta, stack.task(task).delta)

    layers, hidden = net.model.layers, net.model.embed_tokens(torch.arange(1, 9)[None])
    positions = torch.arange(8)[None]
    around = {"position_embeddings": net.model.rotary_emb(hidden, positions)}
    mask = torch.full((8, 8), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        for (source, task), (_, scale) in zip(wanted, found.stacked.layers):
            stack = one.scene.updates[q.format(source)]
            with applied(layers[source], {"self_attn.q_proj": stack.task(task)}):
                hidden = scale * layers[source](hidden, attention_mask=mask, **around)
        expected = net.lm_head(net.model.norm(hidden))
    torch.testing.assert_close(answers(net, found.updates, found.stacked), expected)


def test_a_network_is_whole_again_and_shares_its_weights():
    net = network()
    before, config = answers(net, {}), net.config.to_dict()
    weights = {id(p) for p in net.parameters()}
    one = family(net)
    found = made(one, layer0_b=True, layer1_b=True, layer1_c=True)
    with pytest.raises(KeyError), restacked(net, found.stacked):
        assert len(net.model.layers) == 5 and net.config.num_hidden_layers == 5
        assert {id(p) for p in net.parameters()} == weights
        assert [one.self_attn.layer_idx for one in net.model.layers] == list(range(5))
        raise KeyError
    assert net.config.to_dict() == config and torch.equal(answers(net, {}), before)


def test_what_is_written_with_a_cache_is_what_is_written_without():
    net = network()
    one = family(net)
    found = made(one, layer0_b=True, layer1_c=True, layer1_scale=1.5)
    ids = torch.arange(1, 6)[None]
    options = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    with restacked(net, found.stacked), applied(net, found.updates):
        kept, plain = (
            net.generate(ids, attention_mask=torch.ones_like(ids), use_cache=cache, **options)
            for cache in (True, False)
        )
    assert kept.shape == (1, 11) and torch.equal(kept, plain)


def test_what_cannot_be_stacked_is_one_sentence():
    net = network()
    with pytest.raises(ValueError, match="allow_depth_change=true says that it is wanted"):
        family(net, wanted=False)
    with pytest.raises(ValueError, match="6 tasks have too many orders"):
        family(net, tasks="abcdef")
    two = {"encoder.block.0.q": (8, 8), "decoder.block.0.q": (8, 8)}
    scene = Scene(adapters(shapes=two), lambda s, _: s, list(TASKS), SimpleNamespace(net=net))
    with pytest.raises(ValueError, match=r"decoder\.block, encoder\.block.* one list alone"):
        Integration(scene, allow_depth_change=True)


def test_what_is_written_is_searched_told_and_not_exported(cell, workshop, tmp_path):
    pytest.importorskip("smac")
    options = ["trials=2", "least=4", "family.allow_depth_change=true"]
    chosen = cell(
        "writer", *WRITTEN, "tuning.epochs=1", "merge=dis", "dataset.only=[say,color]",
        *(f"merge.search.{one}" for one in options),
    )  # fmt: skip
    done = pipeline.run(chosen, workshop)
    whole = [one for one in done.tried if "rows" not in one]
    assert len(whole) == 2 and done.rows[0]["tuned_score"] == max(o["score"] for o in whole)
    assert all(one["rows"] == [None, 4, None] for one in done.tried if "rows" in one)
    form, _, layers = done.rows[0]["output"].partition(" of ")
    assert form.startswith("shared, lowrank") and layers == "2 layers"
    with pytest.raises(ValueError, match="other layers than the checkpoint"):
        export(chosen, done.rows, tmp_path / "out", workshop, rank=None, merged=False, task=None)
