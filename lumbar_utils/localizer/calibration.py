"""What is fitted once the networks are trained: how far their evidence may be trusted.

The networks' answers for neighbouring levels are wrong together or right together, so the decoder's posterior is too
sure of itself. On held-out scans with known points, phantoms or those of a table, it is seen which points are right:
a temperature for the evidence and a logistic curve for the confidence are fitted to that, so that of the points with
a confidence of 0.9 nine in ten lie within 5 mm. Real scans differ from phantoms in ways that no phantom tells; what was
fitted on phantoms is an estimate there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from ..errors import DataError
from ..labels import LEVELS, N_LEVELS
from .decoding import SUPPORTED, Chain
from .evaluation import FOUND_MM
from .finder import Decoding, DiscLocalizer, bounded_logit
from .network import CHAIN
from .opinions import Opinion
from .samples import LocalizerSample

TEMPERATURES = (1.0, 1.5, 2.0, 3.0)
FEWEST_POINTS = 50
NEARLY = 0.003
"""Shares of discs found that differ by less are taken for equal."""


@dataclass(frozen=True, eq=False)
class Located:
    """What the finder made of samples.

    Parameters
    ----------
    error_mm : ndarray, shape (n, 5)
        nan where a disc is not in the image or its place not known, inf where no chain was found.
    confidence : ndarray, shape (n, 5)
    shift : ndarray, shape (n,)
        Levels by which the whole chain is too low; nan where no chain was found.
    chains : list of Chain or None
    """

    error_mm: np.ndarray
    confidence: np.ndarray
    shift: np.ndarray
    chains: list[Chain | None]


def locate_samples(localizer: DiscLocalizer, samples: Sequence[LocalizerSample]) -> Located:
    """Find the discs of samples, whose truth is known."""
    return _compare(localizer, samples, (localizer.ask(_pixels(sample)) for sample in samples))


def fit_decoding(localizer: DiscLocalizer, samples: Sequence[LocalizerSample]) -> Decoding:
    """Temperature and confidence that fit samples which the networks have not seen.

    Of the temperatures that find nearly as many discs as the best one, that is taken whose confidence fits best.
    Raises `DataError` when fewer than 50 discs are found with evidence of their own.
    """
    opinions = [localizer.ask(_pixels(sample)) for sample in samples]
    fits = []
    for temperature in TEMPERATURES:
        trial = DiscLocalizer(
            localizer.networks,
            device=localizer.device,
            prior=localizer.prior,
            decoding=Decoding(temperature=temperature),
        )
        located = _compare(trial, samples, opinions)
        found = [i for i, chain in enumerate(located.chains) if chain is not None]
        if not found:
            raise DataError(f"no chain of discs is found in {len(samples)} series, so no confidence can be fitted")
        known = ~np.isnan(located.error_mm[found])
        right = (located.error_mm[found] <= FOUND_MM)[known]
        logits = np.stack([bounded_logit(located.chains[i].posterior) for i in found])[known]
        dissent = np.repeat([1 - located.chains[i].agreement for i in found], known.sum(axis=1))
        seen = np.stack([located.chains[i].support >= SUPPORTED for i in found])[known]
        if seen.sum() < FEWEST_POINTS:
            raise DataError(f"only {seen.sum()} discs to fit the confidence on, at least {FEWEST_POINTS} are needed")
        slope, against, intercept, loss = _logistic(logits[seen], dissent[seen], right[seen])
        # One right and one wrong more than there are: a share of few is not trusted all the way.
        placed = (right[~seen].sum() + 1) / ((~seen).sum() + 2)
        fits.append((float(right.mean()), loss, Decoding(temperature, slope, against, intercept, float(placed))))
    most = max(share for share, _, _ in fits)
    return min((fit for fit in fits if fit[0] >= most - NEARLY), key=lambda fit: fit[1])[2]


def _logistic(logits: np.ndarray, dissent: np.ndarray, right: np.ndarray) -> tuple[float, float, float, float]:
    """Slope, weight of the dissent, intercept and mean log loss, with a slight pull to 1, 0, 0."""

    def loss(p: np.ndarray) -> float:
        z = p[0] * logits - p[1] * dissent + p[2]
        pull = (p[0] - 1) ** 2 + p[1] ** 2 + p[2] ** 2
        return float(np.mean(np.logaddexp(0, z) - right * z)) + 1e-4 * float(pull)

    found = optimize.minimize(loss, [1.0, 1.0, 0.0], bounds=[(0.05, 5), (0, 20), (-10, 10)])
    return (*(float(value) for value in found.x), loss(found.x))


def _pixels(sample: LocalizerSample) -> np.ndarray:
    return sample.pixels.astype(np.float32)


def _compare(
    localizer: DiscLocalizer, samples: Sequence[LocalizerSample], opinions: Iterable[list[Opinion]]
) -> Located:
    error, confidence, shift, chains = [], [], [], []
    for sample, said in zip(samples, opinions, strict=True):
        truth = sample.voxels
        if len(truth) == len(CHAIN):
            truth = truth[[CHAIN.index(level) for level in LEVELS]]
        inside = np.all((truth > -1) & (truth < sample.pixels.shape), axis=1)  # False where it is not known
        chain = localizer.decode(said, sample.offsets, sample.spacing)
        chains.append(chain)
        if chain is None:
            error.append(np.where(inside, np.inf, np.nan))
            confidence.append(np.zeros(N_LEVELS))
            shift.append(np.nan)
            continue
        away = (chain.voxels - truth) * [1, *sample.spacing]
        index = np.arange(len(sample.offsets))
        at, should = (np.interp(v[:, 0], index, sample.offsets) for v in (chain.voxels, truth))
        away[:, 0] = at - should
        error.append(np.where(inside, np.linalg.norm(away, axis=1), np.nan))
        confidence.append(localizer.decoding.confidence(chain))
        step = float(np.median(np.diff(chain.voxels[:, 1]))) * sample.spacing[0]
        shift.append(np.rint(np.median(away[inside, 1]) / step) if inside.any() else 0.0)
    return Located(np.array(error), np.array(confidence), np.array(shift), chains)
