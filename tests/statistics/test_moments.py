import multiprocessing

import pytest
import tiny_models
import torch
import torch.distributed as dist
from tiny_models import EOS, FAMILIES, attention, batch, largest_difference, rows_of
from torch import nn

from osrm_exp import statistics

LENGTHS = [7, 4, 5, 2]  # the first sample is as long as the batch


def gram(net, batches, modules, level="token", include_padding=False):
    return statistics.gram(net, batches, modules, level=level, include_padding=include_padding)


def inputs_of(net, data, modules):
    """What each module is fed, `[sample, token, in]`, by a hook of the test's own."""
    found = {}
    handles = [
        net.get_submodule(m).register_forward_hook(lambda _, x, __, m=m: found.update({m: x[0]}))
        for m in modules
    ]
    with torch.no_grad():
        net(**{k: v for k, v in data.items() if k != "labels" or v.dim() == 2})
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_token_gram_is_the_second_moment_of_the_real_rows(family):
    net, data = tiny_models.model(family), batch(LENGTHS, 7)
    modules = attention(net)
    expected = {}
    for name, x in inputs_of(net, data, modules).items():
        rows = torch.cat([sample[:n] for sample, n in zip(x, LENGTHS)]).double()
        assert len(rows) == sum(LENGTHS)
        expected[name] = rows.T @ rows / len(rows)
    assert largest_difference(expected, gram(net, [data], modules)) < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_sample_gram_and_mean_are_moments_of_the_samples_means(family):
    net, data = tiny_models.model(family), batch(LENGTHS, 7)
    modules = attention(net)
    grams, means = {}, {}
    for name, x in inputs_of(net, data, modules).items():
        rows = torch.stack([sample[:n].double().mean(0) for sample, n in zip(x, LENGTHS)])
        grams[name], means[name] = rows.T @ rows / len(rows), rows.mean(0)
    assert largest_difference(grams, gram(net, [data], modules, level="sample")) < 1e-12
    found = statistics.mean(net, [data], modules, include_padding=False)
    assert largest_difference(means, found) < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_released_mean_counts_every_position(family):
    net, data = tiny_models.model(family), batch(LENGTHS, 9)
    modules = attention(net)
    expected = {n: x.double().mean((0, 1)) for n, x in inputs_of(net, data, modules).items()}
    found = statistics.mean(net, [data], modules, include_padding=True)
    assert largest_difference(expected, found) < 1e-12


def test_the_released_mean_can_be_padded_with_eos_as_the_release_pads():
    net, data = tiny_models.model("roberta"), batch(LENGTHS, 9)
    other = {**data, "input_ids": data["input_ids"].where(data["attention_mask"].bool(), EOS)}
    modules = attention(net)
    asked = statistics.mean(net, [data], modules, include_padding=True, padding="eos")
    by_hand = statistics.mean(net, [other], modules, include_padding=True)
    assert largest_difference(by_hand, asked) == 0
    plain = statistics.mean(net, [data], modules, include_padding=True)
    assert largest_difference(plain, asked) > 0.01
    net.config.eos_token_id = None
    with pytest.raises(ValueError, match="needs a model with an end-of-sequence token"):
        statistics.mean(net, [data], modules, include_padding=True, padding="eos")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", ["token", "sample"])
def test_doubling_the_padding_changes_nothing(family, level):
    net = tiny_models.model(family)
    modules = attention(net)
    short, long = batch(LENGTHS, 7), batch(LENGTHS, 14)
    same = gram(net, [short], modules, level), gram(net, [long], modules, level)
    assert largest_difference(*same) < 1e-5
    padded = gram(net, [short], modules, level, True), gram(net, [long], modules, level, True)
    assert largest_difference(*padded) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_how_samples_are_batched_does_not_matter(family):
    net, data = tiny_models.model(family), batch(LENGTHS, 7)
    modules = attention(net)
    parts = [rows_of(data, slice(0, 1)), rows_of(data, slice(1, 4))]
    whole = gram(net, [data], modules), gram(net, parts, modules)
    assert largest_difference(*whole) < 1e-5
    lone = statistics.mean(net, parts, modules, include_padding=False)
    assert (
        largest_difference(statistics.mean(net, [data], modules, include_padding=False), lone)
        < 1e-5
    )


@pytest.mark.parametrize("family, inputs", [("roberta", 2), ("llama", 2), ("t5", 7)])
def test_modules_that_are_fed_one_tensor_share_one_result(family, inputs):
    net = tiny_models.model(family)
    found = gram(net, [batch(LENGTHS, 7), batch([3, 6], 6, seed=1)], attention(net))
    assert len({id(matrix) for matrix in found.values()}) == inputs
    for name, matrix in found.items():
        stem, _, kind = name.rpartition(".")
        siblings = [other for other in found if other.rpartition(".")[0] == stem]
        if "EncDecAttention" not in name:
            assert all(found[other] is matrix for other in siblings)
        elif kind in "kv":  # the encoder's output, in both layers; the query is the decoder's own
            assert matrix is found[name.replace("block.1", "block.0")]
            assert matrix is not found[f"{stem}.q"]


def test_a_text_decoder_counts_the_positions_with_a_label():
    net, data = tiny_models.model("t5_text"), batch(LENGTHS, 7)
    data["labels"] = torch.tensor([[5, 6, 2], [7, 2, -100], [2, -100, -100], [8, 9, 2]])
    modules = attention(net)
    found = gram(net, [data], modules)
    for name, x in inputs_of(net, data, modules).items():
        own = "decoder" in name and not ("EncDec" in name and name[-1] in "kv")
        lengths = [3, 2, 1, 3] if own else LENGTHS
        rows = torch.cat([sample[:n] for sample, n in zip(x, lengths)]).double()
        torch.testing.assert_close(found[name], rows.T @ rows / len(rows))


def test_decoder_attention_mask_wins():
    net, data = tiny_models.model("t5"), batch(LENGTHS, 7)
    mask = torch.zeros(4, 7, dtype=torch.long)
    mask[:, :2] = 1
    data["decoder_attention_mask"] = mask
    name = "transformer.decoder.block.1.layer.0.SelfAttention.q"
    rows = inputs_of(net, data, [name])[name][:, :2].flatten(0, 1).double()
    torch.testing.assert_close(gram(net, [data], [name])[name], rows.T @ rows / 8)


def test_behind_the_pooler_a_row_is_a_sample():
    net, data = tiny_models.model("roberta"), batch(LENGTHS, 7)
    rows = inputs_of(net, data, ["classifier.out_proj"])["classifier.out_proj"].double()
    for level in ("token", "sample"):
        found = gram(net, [data], ["classifier.out_proj"], level)["classifier.out_proj"]
        torch.testing.assert_close(found, rows.T @ rows / 4)


def test_half_precision_inputs_are_accumulated_in_float64():
    net, data = tiny_models.model("llama").bfloat16(), batch(LENGTHS, 7)
    modules = attention(net)
    found = gram(net, [data], modules)
    rows = inputs_of(net, data, modules)[modules[0]][data["attention_mask"].bool()].double()
    torch.testing.assert_close(found[modules[0]], rows.T @ rows / len(rows))
    assert found[modules[0]].dtype == torch.float64


def test_hooks_are_gone_also_after_an_exception():
    net, data = tiny_models.model("t5"), batch(LENGTHS, 7)
    modules = attention(net)
    gram(net, [data], modules)
    statistics.fisher(net, [data], modules, mode="exact")
    with pytest.raises(IndexError):
        gram(net, [{"input_ids": torch.full((1, 3), 10**6)}], modules)
    for module in net.modules():
        assert not module._forward_pre_hooks and not module._forward_hooks


def test_what_cannot_be_collected_is_refused():
    net, data = tiny_models.model("roberta"), batch(LENGTHS, 7)
    modules = attention(net)
    with pytest.raises(ValueError, match=r"'tokens'.*'token' or 'sample'"):
        gram(net, [data], modules, level="tokens")
    with pytest.raises(ValueError, match="no batch reached"):
        gram(net, [], modules)
    with pytest.raises(ValueError, match="without a real token"):
        empty = {**data, "attention_mask": data["attention_mask"] * torch.eye(4)[:, :1].long()}
        gram(net, [empty], modules, level="sample")
    with pytest.raises(ValueError, match=r"mask \[4, 7\] does not fit"):
        decoder = {**data, "decoder_input_ids": data["input_ids"][:, :3]}
        gram(tiny_models.model("t5_text"), [decoder], ["decoder.block.0.layer.0.SelfAttention.q"])
    with pytest.raises(ValueError, match="training mode"):
        gram(net.train(), [data], modules)


def test_sharing_that_changes_between_batches_is_refused():
    class Fickle(nn.Module):
        config = None

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, input_ids, **_):
            x = torch.ones(*input_ids.shape, 4)
            self.first(x)
            self.second(x if input_ids[0, 0] == 0 else x.clone())

    data = [{"input_ids": torch.zeros(2, 3)}, {"input_ids": torch.ones(2, 3)}]
    with pytest.raises(ValueError, match="second shared its input with first before"):
        gram(Fickle().eval(), data, ["first", "second"])


def _collect(rank, store, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    net, data = tiny_models.model("roberta"), batch(LENGTHS, 7)
    part = rows_of(data, slice(0, 1) if rank == 0 else slice(1, 4))
    found = gram(net, [part], attention(net))
    queue.put({name: matrix.numpy() for name, matrix in found.items()})
    dist.destroy_process_group()


def test_processes_add_up_their_shares(tmp_path):
    net, data = tiny_models.model("roberta"), batch(LENGTHS, 7)
    whole = gram(net, [data], attention(net))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [
        context.Process(target=_collect, args=(rank, tmp_path / "store", queue))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    shares = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    for share in shares:
        found = {name: torch.from_numpy(matrix) for name, matrix in share.items()}
        assert largest_difference(whole, found) < 1e-5
