"""One chain of points from those found on several series of a study."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .points import DiscPoints, with_low_confidence, without_low_confidence

FIRST_LEAD = 0.15
"""By so much must the mean confidence on a later series, or stack, exceed that on the first, which shows most."""
SAME_DISC_MM = 12.0
"""Points nearer along the spine are on one disc; discs are 25 to 45 mm apart. Chains are compared in their median."""
MAX_DISPUTED = 0.75
"""Highest confidence of a point on which two series of a study disagree, so that it is marked, however low the
confidence of one of them is: the other may be wrong."""


def fuse_series(study_id: str, results: Sequence[tuple[DiscPoints, float]]) -> DiscPoints:
    """The points of a study from those on each of its series.

    The most confident series decides, the first one with a lead of `FIRST_LEAD`. Points of series with the same chain
    are averaged as far as they lie together; a level that the deciding series had to impute is taken from one on which
    its disc is seen. Other places, and chains that lie on other discs, lower the confidence. `results` are the points
    with their weights in the mean; the `series_id` that comes back is the deciding one's.
    """
    chains = [chain for chain, _ in results]
    weights = np.array([weight for _, weight in results])[:, None]
    positions = np.array([chain.points for chain in chains])  # (series, level, 3)
    confidences = np.array([chain.confidence for chain in chains])  # (series, level), as are the masks below
    observed = np.array([[not without_low_confidence(flag) for flag in chain.flags] for chain in chains])
    deciding = int(np.argmax(confidences.mean(axis=1) - np.where(np.arange(len(chains)) > 0, FIRST_LEAD, 0.0)))
    best = chains[deciding]
    down = best.points[-1] - best.points[0]
    down /= np.linalg.norm(down)
    same_chain = np.abs(np.median((positions - best.points) @ down, axis=1)) < SAME_DISC_MM
    # A level that is imputed on one series and observed on another counts where it is observed.
    counts = same_chain[:, None] & (observed | ~(same_chain[:, None] & observed).any(axis=0))
    reference = np.where(counts[deciding], deciding, np.argmax(np.where(counts, confidences, -1.0), axis=0))
    difference = positions - positions[reference, np.arange(len(reference))]
    together = counts & (np.linalg.norm(difference, axis=2) < SAME_DISC_MM)
    weights = together * weights * (confidences + 1e-3)
    points = (weights[..., None] * positions).sum(axis=0) / weights.sum(axis=0)[:, None]
    confidence = np.where(together, confidences, 0.0).max(axis=0)
    # Places on other discs, and chains of other labels, exclude each other: each takes confidence from this one.
    conflicting = np.where(counts & (np.abs(difference @ down) >= SAME_DISC_MM), confidences, 0.0).sum(axis=0)
    confidence *= (confidence + 1e-9) / (confidence + conflicting + 1e-9)
    confidence = np.where(conflicting > 0, np.minimum(confidence, MAX_DISPUTED), confidence)
    means = confidences.mean(axis=1)
    confidence *= means[same_chain].sum() / max(means.sum(), 1e-9)
    if not same_chain.all():
        confidence = np.minimum(confidence, MAX_DISPUTED)
    seen = (together & observed).any(axis=0)
    flags = ("" if here else without_low_confidence(flag) for here, flag in zip(seen, best.flags, strict=True))
    return DiscPoints(study_id, best.series_id, points, confidence, with_low_confidence(flags, confidence), best.source)
