"""LoRA-LEGO: adapters as bags of rank-1 units, which are clustered and replaced by centroids."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from osrm_exp.lora import LowRank, Update


def lora_lego(
    updates: Mapping[str, LowRank],
    /,
    *,
    k: int | None,
    features: str,
    r_ref: str,
    eps: float,
    seed: int,
) -> Mapping[str, Update]:
    """All tasks' units `(row of A, column of B)` in `k` clusters, one unit of the result for each.

    Zhao et al., ICLR 2025, arXiv 2409.16167, with the steps of two public re-implementations that
    disagree on `features` and `r_ref`. Theirs depend on how a delta is split into factors; here
    units are canonical and in an order of their own, so that permuted tasks give the same result.

    Args:
        updates: a stack a module.
        k: rank of the result, null for the mean rank of the adapters that have the module.
        features: what is clustered, `unit` vectors a and b side by side, or `raw` ones.
        r_ref: the output is scaled by `sqrt(r / rank of the result)`, r being the rank of a
            `single` adapter (their mean) or the `total` of all.
        eps: added to a centroid's size before it divides.
        seed: of the clustering.
    """
    if features not in ("unit", "raw"):
        raise ValueError(f"features is {features!r}: expected unit or raw")
    if r_ref not in ("single", "total"):
        raise ValueError(f"r_ref is {r_ref!r}: expected single or total")
    merged = {}
    for module, stack in updates.items():
        a, b = canonical_units(stack)
        single = sum(stack.ranks) / max(1, sum(rank > 0 for rank in stack.ranks))
        assigned = cluster(a, b, k or max(1, round(single)), features, seed)
        centroids = merge_units(a, b, assigned, eps)
        reference = single if r_ref == "single" else sum(stack.ranks)
        output = (reference / max(1, centroids.rank)) ** 0.5
        merged[module] = (centroids * output).to(stack.A.dtype)
    return merged


def canonical_units(stack: LowRank) -> tuple[Tensor, Tensor]:
    """Non-zero units as `a [R, in]` and `b [R, out]` of equal norms, float64.

    `(a, b)` and `(c a, b / c)` are the same unit: the largest entry of `a` is made positive too.
    """
    together = stack.total().to(torch.float64)
    a, b = together.A, together.B.mT
    norms_a, norms_b = a.norm(dim=1), b.norm(dim=1)
    alive = norms_a * norms_b > 0
    a, b, root = a[alive], b[alive], (norms_b / norms_a)[alive].sqrt()[:, None]
    largest = a.gather(1, a.abs().argmax(1, keepdim=True)) if len(a) else a[:, :1]
    return a * root * largest.sign(), b / root * largest.sign()


def cluster(a: Tensor, b: Tensor, k: int, features: str, seed: int) -> Tensor:
    """Cluster `[R]` of every unit, by k-means; fewer than `k` where there are fewer points."""
    if features == "unit":
        a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    points, place = torch.cat([a, b], dim=1).unique(dim=0, return_inverse=True)  # sorted
    if len(points) <= k:
        return place
    from sklearn.cluster import KMeans  # late: it takes longer to import than all merging does

    counts = place.bincount().cpu().numpy()
    means = KMeans(k, n_init=10, random_state=seed).fit(points.cpu().numpy(), sample_weight=counts)
    return torch.from_numpy(means.labels_).to(place)[place]


def merge_units(a: Tensor, b: Tensor, assigned: Tensor, eps: float) -> LowRank:
    """Each cluster's mean unit, at the mean size of its members; empty clusters are left out.

    Size is the largest entry of a and b. `a [R, in]`, `b [R, out]`, `assigned [R]`.
    """
    units = torch.cat([a, b], dim=1)
    chosen = assigned.unique()
    share = (assigned == chosen[:, None]).to(units)
    share = share / share.sum(1, keepdim=True)  # [cluster, R]
    if not units.numel():
        return LowRank(a, b.mT)
    centroids = share @ units
    size = share @ units.abs().amax(1)
    centroids = centroids * (size / (centroids.abs().amax(1) + eps))[:, None]
    A, B = centroids.split([a.shape[1], b.shape[1]], dim=1)
    return LowRank(A, B.mT)
