import pytest
import torch
from golden import dense, distance
from synthetic import adapters, orthogonal

from osrm_exp.merging import smile

OPTIONS = {"rank": None, "gate_rank": 1, "top_k": 1}


def test_orthogonal_row_spaces_route_perfectly():
    updates = orthogonal((1, 1, 1))
    merged = smile(updates, **OPTIONS)["w"]
    for task in updates["w"].unstack():
        x = torch.cat([task.A, 3 * task.A])
        torch.testing.assert_close(merged.added(x, torch.zeros(2, 9).double()), x @ task.delta.mT)


def test_every_input_is_answered_by_its_best_experts():
    """The definition, from dense SVDs."""
    (module, given), *_ = adapters((2, 3, 1)).items()
    x = torch.randn(6, given.shape[1], generator=torch.Generator().manual_seed(0)).double()
    merged = smile({module: given}, rank=None, gate_rank=1, top_k=2)[module]
    for row in x:
        V = [torch.linalg.svd(task.delta)[2][:1] for task in given.unstack()]
        score = torch.stack([(v @ row).norm() for v in V])
        best = score.topk(2).indices
        p = score[best].softmax(0)
        expected = sum(w * given.task(int(t)).delta @ row for w, t in zip(p, best))
        zero = torch.zeros(given.shape[0], dtype=torch.float64)
        torch.testing.assert_close(merged.added(row, zero), expected)


def test_experts_of_a_lower_rank_say_what_they_lose():
    updates = adapters((3, 3))
    exact, cut = (smile(updates, **{**OPTIONS, "rank": rank}) for rank in (None, 2))
    for module, given in updates.items():
        assert exact[module].error is None and exact[module].rank == 3
        lost = (cut[module].experts.delta - given.delta).norm() / given.delta.norm()
        assert cut[module].error == pytest.approx(lost.item(), rel=1e-6)
        assert distance(dense(cut[module]), dense(exact[module])) > 0


def test_more_experts_than_tasks_are_refused():
    with pytest.raises(ValueError, match="top_k=3 of 2 tasks: choose from 1 to 2"):
        smile(adapters((1, 1)), **{**OPTIONS, "top_k": 3})
