import pytest
import torch

from osrm_exp.lora import Dense, LowRank, Routed, Update, stack

SHAPE = (9, 7)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def low_rank(*tasks: int) -> LowRank:
    return LowRank(normal(*tasks, 2, 7), normal(*tasks, 9, 2, seed=1))


def routed(tasks: int = 3) -> Routed:
    return Routed(low_rank(tasks), normal(tasks, 1, 7, seed=2), top=2)


FORMS = {"shared": [low_rank(), Dense(low_rank().delta)],
         "per_task": [low_rank(3), Dense(low_rank(3).delta)], "routed": [routed()]}  # fmt: skip
ALL = [(sharing, update) for sharing, updates in FORMS.items() for update in updates]


@pytest.mark.parametrize(("sharing", "update"), ALL)
def test_every_form_answers_the_same_questions(sharing: str, update: Update):
    assert update.sharing == sharing and update.shape == SHAPE
    assert update.dtype == torch.float64 and update.to(torch.float32).dtype == torch.float32
    assert update.rank == (None if type(update) is Dense else 2)
    assert update.error is None
    one = update.task(1) if sharing == "per_task" else update
    x, y = normal(4, 5, 7), normal(4, 5, 9, seed=3).bfloat16()
    added = one.added(x, y)
    assert added.shape == y.shape and added.dtype == y.dtype
    change = one.added(x, torch.zeros(4, 5, 9, dtype=torch.float64))
    torch.testing.assert_close((one * 3).added(x, torch.zeros_like(change)), 3 * change)
    torch.testing.assert_close(added, (y + change).bfloat16())


@pytest.mark.parametrize("update", FORMS["shared"])
def test_a_shared_update_is_its_delta_on_every_input(update):
    x = normal(4, 7)
    torch.testing.assert_close(update.added(x, normal(4, 9) * 0), x @ update.single.delta.mT)


@pytest.mark.parametrize(("low", "numbers"), [pair for pair in FORMS.values() if len(pair) == 2])
def test_factors_and_numbers_give_the_same_results(low, numbers):
    U = torch.linalg.qr(normal(9, 2, seed=4)).Q
    for change in (lambda u: u.without(U), lambda u: u.lifted(normal(4, 9)), lambda u: u * 2):
        torch.testing.assert_close(change(low).delta, change(numbers).delta)
    assert type(low.without(U)) is LowRank and type(numbers.lifted(U.mT)) is LowRank
    if low.sharing == "per_task":
        assert len(low) == len(numbers) == 3
        torch.testing.assert_close(low.total().delta, numbers.total().delta)
        part, i = slice(2, 5), torch.tensor([0, 8, 3])
        torch.testing.assert_close(low.rows(part), numbers.rows(part))
        torch.testing.assert_close(low.entries(i, i % 7), numbers.entries(i, i % 7))
        for one, other in zip(low.unstack(), numbers.unstack()):
            torch.testing.assert_close(one.delta, other.delta)


def test_coordinates_of_numbers_are_the_numbers():
    numbers = Dense(normal(3, 4, 5).float())
    tasks, lift = numbers.coordinates()
    assert torch.equal(torch.stack([task.delta for task in tasks]).float(), numbers.delta)
    assert lift(tasks[0].delta).dtype == torch.float32


REFUSED = [(u, "a delta of its own") for u in FORMS["per_task"]]


@pytest.mark.parametrize(("update", "why"), [*REFUSED, (routed(), "for every input")])
def test_what_is_no_single_delta_is_refused_in_one_sentence(update, why):
    for ask in (lambda: update.single, lambda: update.single.truncate(1)):
        with pytest.raises(ValueError, match=why) as caught:
            ask()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("update", FORMS["per_task"])
def test_a_stack_is_never_taken_for_one_update(update):
    for ask in (lambda: update.truncate(1), lambda: update.added(normal(4, 7), normal(4, 9))):
        with pytest.raises(ValueError, match="a delta of its own"):
            ask()


def test_a_router_weighs_the_best_experts_of_every_input():
    update, x = routed(), normal(5, 7)
    scores = (x @ update.gate[:, 0].mT).abs()
    for row, (score, p) in enumerate(zip(scores, update.weights(x))):
        best = score.topk(2).indices
        expected = torch.zeros(3, dtype=torch.float64)
        expected[best] = score[best].softmax(0)
        torch.testing.assert_close(p, expected)
        out = update.added(x[row], torch.zeros(9, dtype=torch.float64))
        torch.testing.assert_close(out, torch.einsum("t,toi,i", p, update.experts.delta, x[row]))


def test_padding_of_an_expert_is_never_seen():
    experts = stack([LowRank(normal(r, 7), normal(9, r)) for r in (1, 3)])
    update = Routed(experts, normal(2, 1, 7), top=1)
    x = normal(4, 7)
    chosen = update.weights(x).argmax(-1)
    expected = [experts.task(int(t)).delta @ row for t, row in zip(chosen, x)]
    torch.testing.assert_close(update.added(x, torch.zeros(4, 9)), torch.stack(expected).float())
