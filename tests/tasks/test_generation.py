import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from osrm_exp.tasks import generation
from osrm_exp.tasks.generation import greedy, row_losses, told
from osrm_exp.tasks.prompts import collate

LENGTHS = [(3, 2), (7, 4), (5, 1), (7, 3)]  # of prompts and responses


@pytest.fixture
def net(checkpoints):
    net = AutoModelForCausalLM.from_pretrained(checkpoints["writer"]).eval()
    for parameter in net.parameters():  # far from linear, so that every token matters
        parameter.requires_grad_(False).mul_(5 if parameter.dim() > 1 else 1)
    return net


@pytest.fixture
def batch(checkpoints):
    draw = torch.Generator().manual_seed(0)
    examples = []
    for prompt, response in LENGTHS:
        ids = torch.randint(4, 20, (prompt + response,), generator=draw).tolist()
        labels = [-100] * prompt + ids[prompt:]
        examples.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return collate(examples, AutoTokenizer.from_pretrained(checkpoints["writer"]), None)


def test_the_loss_is_that_of_response_tokens_alone(net, batch):
    own = net(**batch).loss  # transformers' mean over the tokens that are labelled
    assert generation.loss(*told(net, batch)).item() == pytest.approx(own.item(), rel=1e-5)
    counted = (batch["labels"] != -100).any(0).int().argmax()
    assert told(net, batch)[0].shape[1] == batch["labels"].shape[1] - counted + 1
    other = {**batch, "input_ids": batch["input_ids"].where(batch["attention_mask"] > 0, 9)}
    assert generation.loss(*told(net, other)).item() == pytest.approx(own.item(), rel=1e-5)


def test_rows_have_losses_of_their_own(net, batch):
    losses, tokens = row_losses(*told(net, batch))
    assert tokens.tolist() == [response for _, response in LENGTHS]
    for i, loss in enumerate(losses):
        alone = {key: value[i : i + 1] for key, value in batch.items()}
        assert loss.item() == pytest.approx(net(**alone).loss.item(), rel=1e-5)
    mean = generation.response_loss(losses, tokens)
    assert mean == pytest.approx(net(**batch).loss.item(), rel=1e-5)
    found, headline = generation.watch(None, losses, tokens)
    assert found[headline] == pytest.approx(losses.neg().exp().mean().item())


def test_a_network_that_gives_all_logits_has_the_same_loss(batch):
    class Whole(GPT2LMHeadModel):
        def forward(self, input_ids, attention_mask):
            return super().forward(input_ids=input_ids, attention_mask=attention_mask)

    torch.manual_seed(0)
    whole = Whole(GPT2Config(vocab_size=30, n_layer=1, n_embd=16, n_head=2, n_positions=40)).eval()
    plain = GPT2LMHeadModel(whole.config).eval()
    plain.load_state_dict(whole.state_dict())
    assert generation._can_keep(plain) and not generation._can_keep(whole)
    a, b = (generation.loss(*told(one, batch)).item() for one in (whole, plain))
    assert a == pytest.approx(b, rel=1e-5)


def argmax_by_hand(net, prompt, most, ends):
    ids, found = list(prompt), []
    for _ in range(most):
        token = int(net(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in ends:
            return found, True
        ids, found = [*ids, token], [*found, token]
    return found, False


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # relative positions, absolute ones
def test_a_padded_batch_writes_what_every_prompt_alone_does(net, batch, family):
    if family == "gpt2":
        torch.manual_seed(1)
        net = GPT2LMHeadModel(GPT2Config(vocab_size=24, n_layer=2, n_embd=16, n_head=2,
                                         n_positions=40, eos_token_id=1)).eval()  # fmt: skip
        for parameter in net.parameters():
            parameter.requires_grad_(False).mul_(5 if parameter.dim() > 1 else 1)
    first = argmax_by_hand(net, batch["input_ids"][0, :3].tolist(), 6, ())[0]
    stop = first[2]  # a token that is written, so that the first answer ends early
    ends = {1, stop}
    found = greedy(net, batch, ends, 6)
    for i, (prompt, _) in enumerate(LENGTHS):
        ids, ended = argmax_by_hand(net, batch["input_ids"][i, :prompt].tolist(), 6, ends)
        assert (found[i].ids, found[i].ended) == (ids, ended), i
    assert found[0].ended and len(found[0].ids) < 6


def test_what_a_checkpoint_asks_for_beside_is_left_out_and_put_back(net, batch):
    plain = greedy(net, batch, {1}, 5)
    own = net.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.max_length = True, 9.0, 3.0, 4
    assert greedy(net, batch, {1}, 5) == plain
    assert net.generation_config is own
    own.eos_token_id = [1, plain[0].ids[0]]
    assert greedy(net, batch, {None}, 5)[0] == ([], True)  # but what ends its answers is its own
