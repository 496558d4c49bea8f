"""How `A` starts: `(width, rank, /, *, generator, statistics, hyperparameters) -> A [rank, width]`.

Pure functions; all results are float32. `generator` belongs to the module (and, unless the arm is
shared by all tasks, to the task). Statistics come by keyword: `own`, of the task itself, and
`others`, stacked over the other tasks of the suite. Grams are normalised by their rows, so every
other task has equal weight. `B` starts at zero whatever `A` is.

OSRM: Zhang & Zhou, ACL 2025, arXiv 2505.22934; released code illidanlab/OSRM.
"""

import warnings
from math import sqrt

import torch
from torch import Generator, Tensor

from osrm_exp.inits import eigen
from osrm_exp.inits.data_free import check_rank, normal, orthonormal_rows

DEAD = 1e-9  # share of a mean coordinate's energy below which one is not fed at all
OWN, OTHERS = "the task", "the other tasks"


def osrm(
    width: int,
    rank: int,
    /,
    *,
    generator: Generator,
    others: Tensor,
    tie_break: str,
    own: Tensor | None = None,
) -> Tensor:
    """The directions in which the other tasks' inputs have least energy: the paper's formula.

    Minimises `tr(A G A^T)` subject to `A A^T = I`, with `G` the mean of the other tasks' grams: the
    eigenvectors of the smallest eigenvalues. If more than `rank` eigenvalues are zero, every choice
    within the null space is a minimum, and `tie_break` takes one.

    Args:
        width: `in` of the module.
        rank: rows of A.
        generator: draws for `random`.
        others: `[task - 1, in, in]`, grams of the other tasks.
        tie_break: `own_energy`, most energy of the own task; `random`, from the generator, the same
            whichever basis of the null space a solver returns; `lapack_last`, whatever it returns.
        own: `[in, in]`, gram of the task itself; only `own_energy` needs it.

    Raises:
        ValueError: an unknown tie break, `own` missing, or `rank` above `width`.

    Warns:
        UserWarning: the minimum is not unique, so `tie_break` chose; a row lies along a dead
            coordinate.
    """
    check_rank(width, rank)
    if tie_break not in ("own_energy", "random", "lapack_last"):
        raise ValueError(f"tie_break is {tie_break!r}: use own_energy, random or lapack_last")
    if tie_break == "own_energy" and own is None:
        raise ValueError("tie_break=own_energy needs the statistic `own`, the task's own gram")
    gram = others.double().mean(0)
    zero = eigen.rounding(gram, others.dtype)
    values, vectors = eigen.smallest(gram, min(rank + 1, width))
    if rank == width or values[rank] > zero:
        A = vectors[:, :rank].mT.float().contiguous()
        _warn_of_dead(A, *((own, OWN) if own is not None else (gram, OTHERS)))
        return A
    values, vectors = torch.linalg.eigh(gram)
    null = vectors[:, values <= zero]  # [in, nullity]
    warnings.warn(
        f"OSRM's minimum is not unique at rank {rank}: tie_break={tie_break} chose in a null space "
        f"of {null.shape[1]} dimensions; collect more rows (level: token) for a unique one",
        stacklevel=2,
    )
    if tie_break == "lapack_last":
        return vectors[:, :rank].mT.float().contiguous()
    if tie_break == "random" or own is None:
        drawn = normal(width, rank, generator).to(null)
        A = orthonormal_rows(null @ (null.mT @ drawn)).float()
        _warn_of_dead(A, gram, OTHERS)
        return A
    A = _most_energy(own, null, rank)
    _warn_of_dead(A, own, OWN)
    return A


def osrm_released(width: int, rank: int, /, *, generator: Generator, others: Tensor) -> Tensor:
    """The last `rank` right singular vectors of the other tasks' mean features, as released.

    Any direction orthogonal to so few vectors is a minimum; which ones are returned is up to the
    SVD. On a CPU they are nearly the last coordinate axes, nearly the same for all tasks.

    Args:
        width: `in` of the module.
        rank: rows of A.
        generator: unused.
        others: `[task - 1, in]`, mean features.
    """
    check_rank(width, rank)
    _, _, Vh = torch.linalg.svd(others.float(), full_matrices=True)
    return Vh[-rank:].contiguous()


def osrm_own(
    width: int,
    rank: int,
    /,
    *,
    generator: Generator,
    own: Tensor,
    others: Tensor,
    energy: float,
) -> Tensor:
    """Where the own task has most energy among the directions that the others hardly use.

    Those are the eigenvectors of the others' mean gram with the smallest eigenvalues that together
    hold at most `energy` of its trace, and never fewer than `rank` of them. With `energy=0` it is
    the null space, where OSRM's objective is indifferent.

    Args:
        width: `in` of the module.
        rank: rows of A.
        generator: unused.
        own: `[in, in]`, gram of the task itself.
        others: `[task - 1, in, in]`, grams of the other tasks.
        energy: share of the others' trace that may be given up, from 0 to 1.
    """
    check_rank(width, rank)
    gram = others.double().mean(0)
    values, vectors = torch.linalg.eigh(gram)
    values = torch.where(values <= eigen.rounding(gram, others.dtype), 0, values)
    quiet = int((values.cumsum(0) <= energy * values.sum()).sum())
    A = _most_energy(own, vectors[:, : max(quiet, rank)], rank)
    _warn_of_dead(A, own, OWN)
    return A


def contrastive(
    width: int,
    rank: int,
    /,
    *,
    generator: Generator,
    own: Tensor,
    others: Tensor,
    ridge: float,
) -> Tensor:
    """Directions of the largest ratio of own to others' energy, orthonormalised.

    The leading eigenvectors of `G_own a = lambda (G_others + ridge * mean diagonal * I) a`. As
    `ridge` goes to 0 with a null space of at least `rank` dimensions, it becomes `osrm_own` with
    `energy=0`; as it grows, the own task's leading directions (`own_largest`).

    Args:
        width: `in` of the module.
        rank: rows of A.
        generator: unused.
        own: `[in, in]`, gram of the task itself.
        others: `[task - 1, in, in]`, grams of the other tasks.
        ridge: relative to the mean of the others' diagonal.

    Raises:
        ValueError: `ridge` is not positive, or `rank` above `width`.
    """
    check_rank(width, rank)
    if not ridge > 0:
        raise ValueError(f"ridge is {ridge}: it must be positive, else null directions divide by 0")
    gram = others.double().mean(0)
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    L = torch.linalg.cholesky(gram)
    half = torch.linalg.solve_triangular(L, own.double(), upper=False)  # L^-1 G_own
    whitened = torch.linalg.solve_triangular(L, half.mT.contiguous(), upper=False)
    _, vectors = eigen.largest((whitened + whitened.mT) / 2, rank)
    Q, _ = torch.linalg.qr(torch.linalg.solve_triangular(L.mT, vectors, upper=True))
    return eigen.signed(Q).mT.float().contiguous()


def osrm_largest(width: int, rank: int, /, *, generator: Generator, others: Tensor) -> Tensor:
    """OSRM upside down, a negative control: the other tasks' largest directions.

    It is also what the covariance code that is commented out in the release would compute.
    """
    check_rank(width, rank)
    return eigen.largest(others.double().mean(0), rank)[1].mT.float().contiguous()


def own_largest(width: int, rank: int, /, *, generator: Generator, own: Tensor) -> Tensor:
    """The own task's largest directions: EVA (Paischer et al., 2024) uncentred, at uniform rank."""
    check_rank(width, rank)
    return eigen.largest(own.double(), rank)[1].mT.float().contiguous()


def lora_null(
    width: int, rank: int, /, *, generator: Generator, own: Tensor, others: Tensor
) -> Tensor:
    """The row space of LoRA-Null's `A`: the smallest directions of the data of *all* tasks.

    Tang et al., arXiv 2503.02659, take general text for these data, rescale the rows by the
    singular values of `W_0` on this subspace, start `B` there too and subtract the product from
    `W_0`. Here `B` is zero and `W_0` is untouched.

    Warns:
        UserWarning: more than `rank` directions have no energy, so that `A` is whichever of them
            the solver returns; a row lies along a dead coordinate.
    """
    check_rank(width, rank)
    gram = (own.double() + others.double().sum(0)) / (1 + len(others))
    values, vectors = eigen.smallest(gram, min(rank + 1, width))
    if rank < width and values[rank] <= eigen.rounding(gram, own.dtype):
        warnings.warn(
            f"LoRA-Null's A is not unique at rank {rank}: the solver chose in a larger null space, "
            "another on another processor; collect more rows (level: token) for a unique one",
            stacklevel=2,
        )
    A = vectors[:, :rank].mT.float().contiguous()
    _warn_of_dead(A, own, OWN)
    return A


def row_norm(A: Tensor, norm: float | str | None) -> Tensor:
    """`A [rank, in]` with every row rescaled to one norm, a confound of any comparison of inits.

    Args:
        A: `[rank, in]`.
        norm: a number; `gaussian`, `sqrt(in) / rank`; `kaiming`, `1 / sqrt(3)`: the root mean
            square norms of those two inits; None changes nothing.
    """
    if norm is None:
        return A
    rank, width = A.shape
    named = {"gaussian": sqrt(width) / rank, "kaiming": 1 / sqrt(3)}
    if isinstance(norm, str):
        if norm not in named:
            raise ValueError(f"row_norm is {norm!r}: use a number, gaussian, kaiming or null")
        norm = named[norm]
    return A / A.norm(dim=1, keepdim=True) * norm


def _warn_of_dead(A: Tensor, gram: Tensor, whose: str) -> None:
    """Warns of rows of A that read nothing but coordinates that are zero in a task's inputs.

    A null direction that is no coordinate is none of them: few rows leave many.
    """
    energy = A.double().square() @ gram.diagonal().double()
    if lost := int((energy <= DEAD * gram.diagonal().mean()).sum()):
        warnings.warn(
            f"{lost} of {len(A)} rows of A lie along dead coordinates of the input, which are zero "
            f"in all rows of {whose} that were seen: while they stay so, these rows never learn",
            stacklevel=3,
        )


def _most_energy(own: Tensor, basis: Tensor, rank: int) -> Tensor:
    """The `rank` directions of most own energy within the columns of `basis [in, k]`."""
    _, inside = eigen.largest(basis.mT @ own.double() @ basis, rank)
    return eigen.signed(basis @ inside).mT.float().contiguous()
