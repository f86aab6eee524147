"""Leave out training labels that networks which have not seen them strongly disagree with.

A label to which out-of-fold predictions give next to no probability is set to `MISSING`, which the loss skips. This is
for the training side only: held-out studies are always scored with their labels untouched, as a score on denoised
labels would praise the network for agreeing with itself. The networks that contradict a label may have been trained on
studies that a later fold holds out: its score then knows a little of them, by way of which labels are left out.

    lumbar train classifier data --run runs/first --fold all
    lumbar train classifier data --run runs/second --denoise runs/first
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..errors import DataError
from ..labels import MISSING, N_SEVERITIES, N_TARGETS, SEVERITY_WEIGHTS, TARGETS, encode_severities
from ..metrics.score import FAMILY_TARGETS, read_predictions

logger = logging.getLogger(__name__)

IMPLAUSIBLE = 0.01
"""Posterior probability below which a label may be left out. Where one label in a hundred is wrong and the predictions
are perfect, three in four of those below 0.01 are wrong, but only every second one below 0.03."""
MAX_SHARE = 0.02
"""At most this share of a family's labels is left out, the least plausible first."""
MAX_CLASS_SHARE = 0.1
"""At most this share of a class of one target is left out, and so nothing of a class with fewer than ten labels: a
rare grade that the networks have not learnt yet is no error of the reader."""


def denoised_labels(
    labels: np.ndarray, probabilities: np.ndarray, *, class_weights: Sequence[float] = SEVERITY_WEIGHTS
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n, 25) with the most implausible ones set to `MISSING`, and which these are, bool (n, 25).

    `probabilities` (n, 25, 3) are out of fold, nan where there are none: those labels are kept. A network trained with
    `class_weights` of 1/2/4 predicts severe four times too often; they are removed first. Raises `DataError` when
    shapes do not fit.
    """
    labels, p = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if labels.ndim != 2 or labels.shape[1] != N_TARGETS or p.shape != (*labels.shape, N_SEVERITIES):
        raise DataError(
            f"labels and probabilities must have shapes (n, {N_TARGETS}) and (n, {N_TARGETS}, {N_SEVERITIES}), "
            f"got {labels.shape} and {p.shape}"
        )
    known = labels != MISSING
    index = np.where(known, labels, 0)[..., None].astype(np.intp)
    plain = p / np.asarray(class_weights, dtype=np.float64)
    posterior = np.take_along_axis(plain, index, axis=-1)[..., 0] / plain.sum(axis=-1)
    room = (MAX_CLASS_SHARE * np.stack([(labels == k).sum(axis=0) for k in range(N_SEVERITIES)], axis=-1)).astype(int)
    dropped = np.zeros(labels.shape, dtype=bool)
    for targets in FAMILY_TARGETS.values():
        left = int(MAX_SHARE * known[:, targets].sum())
        candidates = np.argwhere(known[:, targets] & (posterior[:, targets] < IMPLAUSIBLE))
        candidates[:, 1] = targets[candidates[:, 1]]
        for study, target in candidates[np.argsort(posterior[tuple(candidates.T)], kind="stable")]:
            severity = labels[study, target]
            if left and room[target, severity]:
                dropped[study, target] = True
                room[target, severity] -= 1
                left -= 1
    return np.where(dropped, MISSING, labels).astype(labels.dtype), dropped


def denoise_table(
    labels: pd.DataFrame, predictions: pd.DataFrame, *, class_weights: Sequence[float] = SEVERITY_WEIGHTS
) -> pd.DataFrame:
    """The label table (`train.csv` form) with implausible cells emptied by out-of-fold predictions; for training only.

    `predictions` are in submission form, such as a run's `oof.csv`; studies that they do not name stay as they are.
    """
    ids = [str(study_id) for study_id in labels["study_id"]]
    codes = encode_severities(labels)
    probabilities = read_predictions(predictions, ids, needed=np.zeros(codes.shape, dtype=bool))
    _, dropped = denoised_labels(codes, probabilities, class_weights=class_weights)
    logger.info("%d of %d labels left out of the training", dropped.sum(), (codes != MISSING).sum())
    result = labels.copy()
    result[list(TARGETS)] = result[list(TARGETS)].mask(dropped)
    return result
