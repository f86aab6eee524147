"""How a radiologist's label comes out of the anatomy, and the best anybody can score against such labels.

An ordinal reader: what is perceived is the undistorted degree plus normal noise of `disease.READER_SD`, and the
label is how many of the thresholds 1 and 2 it exceeds. Part of the noise is common to a family of targets in a
study (a strict or a generous reader), which is why labels of neighbouring levels agree better than anatomy alone
would have it; each target's own probabilities do not depend on that part. In a small share of targets the reader errs
grossly, and the label is drawn from the target's prevalence, whatever the anatomy. Both keep the prevalences exactly.
The class probabilities given the degree are therefore known in closed form: they are the oracle, and nothing but
evaluation may read it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import ndtr

from ..labels import FAMILIES, N_CONDITIONS, N_LEVELS, N_SEVERITIES, N_TARGETS, PROBABILITY_COLUMNS, row_ids
from ..studies.statistics import MODERATE_PERCENT, SEVERE_PERCENT
from .disease import READER_SD, perceived_of

LABEL_ERROR_RATE = 0.004  # share of labels that have nothing to do with the anatomy: wrong row, wrong side, wrong click

SHARED_NOISE = 0.35
"""Share of the noise's variance that a study's targets of one family have in common: a strict or a generous reader."""

_STREAM_LABELS = 21
_FAMILY_OF_TARGET = np.repeat(
    [[c in family for family in FAMILIES.values()].index(True) for c in range(N_CONDITIONS)], N_LEVELS
)


def prevalence() -> np.ndarray:
    """Expected share of every class per target, shape (25, 3), rows sum to 1."""
    moderate, severe = MODERATE_PERCENT.ravel() / 100, SEVERE_PERCENT.ravel() / 100
    return np.stack([1 - moderate - severe, moderate, severe], axis=1)


def class_probabilities(degrees: np.ndarray) -> np.ndarray:
    """Probability of each label given the anatomy: degrees (..., 25) to (..., 25, 3), the oracle."""
    u = perceived_of(degrees)
    sd = np.repeat(READER_SD, N_LEVELS)
    at_least_moderate, severe = ndtr((u - 1) / sd), ndtr((u - 2) / sd)
    read = np.stack([1 - at_least_moderate, at_least_moderate - severe, severe], axis=-1)
    return (1 - LABEL_ERROR_RATE) * read + LABEL_ERROR_RATE * prevalence()


def label_person(degrees: np.ndarray, index: int, seed: int) -> np.ndarray:
    """Labels int8 (25,) of person `index` of cohort `seed`, before any goes missing."""
    rng = np.random.default_rng([seed, index, _STREAM_LABELS])
    shared, own = rng.standard_normal(len(FAMILIES)), rng.standard_normal(N_TARGETS)
    gross_error, any_label = rng.random((2, N_TARGETS))
    noise = np.sqrt(SHARED_NOISE) * shared[_FAMILY_OF_TARGET] + np.sqrt(1 - SHARED_NOISE) * own
    u = perceived_of(degrees) + np.repeat(READER_SD, N_LEVELS) * noise
    label = (u > 1).astype(np.int8) + (u > 2)
    wrong = (any_label[:, None] > np.cumsum(prevalence(), axis=1)[:, :2]).sum(axis=1)
    return np.where(gross_error < LABEL_ERROR_RATE, wrong, label).astype(np.int8)


def oracle_frame(study_ids: list[str], degrees: np.ndarray) -> pd.DataFrame:
    """`oracle.csv`: the class probabilities in a submission's form, targets in `labels.TARGETS` order."""
    frame = pd.DataFrame(class_probabilities(degrees).reshape(-1, N_SEVERITIES), columns=list(PROBABILITY_COLUMNS))
    frame.insert(0, "row_id", row_ids(study_ids))
    return frame
