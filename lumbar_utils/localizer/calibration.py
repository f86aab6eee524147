"""What is fitted once the networks are trained: how far their evidence may be trusted.

The networks' answers for neighbouring levels are wrong together or right together, so the decoder's posterior is too
sure of itself. On held-out phantoms, randomised beyond reality, it is known which points are right: a temperature for
the evidence and a logistic curve for the confidence are fitted to that, so that of the points with a confidence of
0.9 nine in ten lie within 5 mm. Real scans differ from phantoms in ways that no phantom tells; there the confidence
is an estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from ..errors import DataError
from ..labels import N_LEVELS
from .decoding import ChainPrior
from .finder import Decoding, DiscLocalizer
from .network import CHAIN
from .samples import LocalizerSample

WITHIN_MM = 5.0
TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FEWEST_POINTS = 50
LEAST = 1e-4
"""Posteriors are kept this far from 0 and 1, where their logarithm means nothing."""


@dataclass(frozen=True, eq=False)
class Located:
    """What the finder made of samples: `error_mm` (n, 5), nan where a disc is not in the image, inf where nothing
    was found; `posterior` and `confidence` (n, 5); `shift` (n,) levels by which the whole chain is too low."""

    error_mm: np.ndarray
    posterior: np.ndarray
    confidence: np.ndarray
    shift: np.ndarray


def locate_samples(localizer: DiscLocalizer, samples: Sequence[LocalizerSample]) -> Located:
    """Find the discs of samples, whose truth is known."""
    return _compare(localizer, samples, [localizer.opinions(_pixels(sample)) for sample in samples])


def fit_decoding(localizer: DiscLocalizer, samples: Sequence[LocalizerSample]) -> Decoding:
    """Temperature and confidence curve that fit samples which the networks have not seen.

    Raises `DataError` when fewer than 50 discs are in view.
    """
    opinions = [localizer.opinions(_pixels(sample)) for sample in samples]
    fits = []
    for temperature in TEMPERATURES:
        trial = DiscLocalizer(localizer.networks, device=localizer.device, prior=ChainPrior(temperature=temperature))
        located = _compare(trial, samples, opinions)
        known = np.isfinite(located.posterior) & ~np.isnan(located.error_mm)
        if known.sum() < FEWEST_POINTS:
            raise DataError(f"only {known.sum()} discs to fit the confidence on, at least {FEWEST_POINTS} are needed")
        right = located.error_mm[known] <= WITHIN_MM
        logits = special.logit(np.clip(located.posterior[known], LEAST, 1 - LEAST))
        slope, intercept, loss = _logistic(logits, right)
        fits.append((loss, Decoding(temperature, slope, intercept)))
    return min(fits, key=lambda fit: fit[0])[1]


def _logistic(logits: np.ndarray, right: np.ndarray) -> tuple[float, float, float]:
    """Slope, intercept and mean log loss of a logistic curve, with a slight pull to slope 1 and intercept 0."""

    def loss(parameters: np.ndarray) -> float:
        z = parameters[0] * logits + parameters[1]
        return float(np.mean(np.logaddexp(0, z) - right * z)) + 1e-3 * float(
            (parameters[0] - 1) ** 2 + parameters[1] ** 2
        )

    found = optimize.minimize(loss, [1.0, 0.0], method="Nelder-Mead")
    return float(found.x[0]), float(found.x[1]), loss(found.x)


def _pixels(sample: LocalizerSample) -> np.ndarray:
    return sample.pixels.astype(np.float32)


def _compare(localizer: DiscLocalizer, samples: Sequence[LocalizerSample], opinions: list) -> Located:
    error, posterior, confidence, shift = [], [], [], []
    for sample, said in zip(samples, opinions, strict=True):
        truth = sample.voxels[2:7] if len(sample.voxels) == len(CHAIN) else sample.voxels
        size = np.array(sample.pixels.shape)
        inside = np.all((truth > -1) & (truth < size), axis=1)
        chain = localizer.decode(said, sample.offsets, sample.spacing)
        if chain is None:
            error.append(np.where(inside, np.inf, np.nan))
            posterior.append(np.zeros(N_LEVELS))
            confidence.append(np.zeros(N_LEVELS))
            shift.append(0)
            continue
        away = (chain.voxels - truth) * [1, *sample.spacing]
        index = np.arange(len(sample.offsets))
        at, should = (np.interp(v[:, 0], index, sample.offsets) for v in (chain.voxels, truth))
        away[:, 0] = at - should
        error.append(np.where(inside, np.linalg.norm(away, axis=1), np.nan))
        posterior.append(chain.posterior)
        confidence.append(localizer.confidence(chain))
        step = np.median(np.diff(truth[:, 1])) * sample.spacing[0]
        shift.append(int(np.rint(np.median(away[:, 1]) / step)))
    return Located(*(np.array(part) for part in (error, posterior, confidence, shift)))
