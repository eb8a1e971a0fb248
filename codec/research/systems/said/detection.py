"""How well boxes are objects: average precision and counts."""

import torch
from torch import Tensor

THRESHOLDS = tuple(n / 10 for n in range(1, 10))


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes, left, top, right, bottom: [N, K, 4] and [N, M, 4] to [N, K, M]."""
    low = torch.maximum(a[:, :, None, :2], b[:, None, :, :2])
    high = torch.minimum(a[:, :, None, 2:], b[:, None, :, 2:])
    both = (high - low).clamp_min(0).prod(3)
    areas = ((box[..., 2:] - box[..., :2]).prod(2) for box in (a, b))
    first, second = areas
    return both / (first[:, :, None] + second[:, None] - both).clamp_min(1e-9)


def matched(overlap: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Which boxes are right: bool [N, K]. In order of their scores boxes take the object that they overlap
    most of those not yet taken, if by `threshold` at least. overlap: [N, K, M]. scores: [N, K]."""
    n, k, _ = overlap.shape
    left = overlap.clone()
    right = torch.zeros((n, k), dtype=torch.bool)
    every = torch.arange(n)
    for rank in scores.argsort(1, descending=True).T:
        best, which = left[every, rank].max(1)
        hit = best >= threshold
        right[every, rank] = hit
        left[every[hit], :, which[hit]] = -1
    return right


def average_precision(right: Tensor, scores: Tensor, n_objects: int) -> float:
    """Area under precision over recall, precision made to fall, of all boxes of all pictures together."""
    order = scores.flatten().argsort(descending=True)
    hits = right.flatten()[order].double().cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1)
    envelope = precision.flip(0).cummax(0).values.flip(0)
    recall = hits / n_objects
    return float((envelope * recall.diff(prepend=recall.new_zeros(1))).sum())


def mean_average_precision(edges: Tensor, scores: Tensor, truth: Tensor, counts: Tensor) -> float:
    """Average precision, mean over overlaps of 0.1 to 0.9.

    edges: of boxes, [N, K, 4]. scores: [N, K]. truth: boxes of objects, [N, M, 4]. counts: [N].
    """
    overlap = overlaps(edges, truth)
    overlap = torch.where((torch.arange(truth.shape[1]) < counts[:, None])[:, None], overlap, -1)
    found = (average_precision(matched(overlap, scores, at), scores, int(counts.sum())) for at in THRESHOLDS)
    return sum(found) / len(THRESHOLDS)


def count_error(found: Tensor, counts: Tensor) -> float:
    """Mean of |how many were found - how many there are|."""
    return float((found - counts).abs().double().mean())


def recall(edges: Tensor, stop: Tensor, truth: Tensor, counts: Tensor) -> float:
    """Share of objects whose centre is in some box before the stop, int64 [N]; others as above."""
    centre = (truth[:, None, :, :2] + truth[:, None, :, 2:]) / 2
    inside = ((edges[:, :, None, :2] <= centre) & (centre <= edges[:, :, None, 2:])).all(3)
    used = (torch.arange(edges.shape[1]) < stop[:, None])[:, :, None]
    there = torch.arange(truth.shape[1]) < counts[:, None]
    return float((inside & used).any(1)[there].double().mean())
