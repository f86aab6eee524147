"""What is fitted once the networks are trained: how confident the localizer may be.

The networks' predictions for neighbouring levels are wrong together or right together, so the decoder's posterior is
overconfident. Held-out scans with known points, phantoms or those of a table, show which points are right: a
temperature for the heat maps and a logistic curve for the confidence are fitted to that, so that of the points with a
confidence of 0.9 nine in ten lie within 5 mm. Some of the scans are cut off first, above the sacrum too: there the
lowest disc looks like a good L5/S1, and a wrong label must not get a high confidence. Real scans differ from phantoms
in ways that no phantom shows; what was fitted on phantoms is an estimate there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from ..errors import DataError
from ..labels import LEVELS, N_LEVELS
from .decoding import OBSERVED, Chain
from .evaluation import FOUND_MM, point_errors
from .heat_maps import HeatMaps
from .localizer import DiscLocalizer, LocalizerCalibration, clipped_logit
from .preprocessing import LocalizationError, normalised
from .samples import LocalizerSample

TEMPERATURES = (1.0, 1.5, 2.0, 3.0)
MIN_POINTS = 50
FOUND_TOLERANCE = 0.003  # shares of discs found that differ by less are taken for equal
CUT_EVERY = 3  # of the scans to fit on, one in so many is cut off
MIN_HEIGHT_MM = 100.0  # no scan is cut to less: there would hardly be a chain to see


@dataclass(frozen=True, eq=False)
class LocatedSamples:
    """What the localizer found on n samples, beside their truth."""

    error_mm: np.ndarray  # (n, 5) nan where a disc's place is not known; without a chain inf if it is in the image
    in_view: np.ndarray  # (n, 5) whether the disc is in the image
    confidence: np.ndarray  # (n, 5)
    shift: np.ndarray  # (n,) levels by which the whole chain is too low; nan where no chain was found
    chains: list[Chain | None]


def locate_samples(
    localizer: DiscLocalizer, samples: Sequence[LocalizerSample], heat_maps: Sequence[HeatMaps] | None = None
) -> LocatedSamples:
    """Find the discs of samples, whose truth is known, on their heat maps where these are predicted already."""
    rows = []
    for sample, maps in zip(samples, heat_maps or map(localizer.predict_heat_maps, samples), strict=True):
        truth = sample.in_chain(LEVELS).voxels
        inside = np.all((truth > -1) & (truth < sample.pixels.shape), axis=1)  # False where it is not known
        chain = localizer.decode(maps)
        if chain is None:
            rows.append((np.where(inside, np.inf, np.nan), inside, np.zeros(N_LEVELS), np.nan, None))
            continue
        errors = point_errors(_in_mm(sample, chain.voxels), _in_mm(sample, truth))
        rows.append((errors.distance, inside, localizer.calibration.confidence(chain), errors.shift, chain))
    *arrays, chains = zip(*rows, strict=True)
    return LocatedSamples(*map(np.array, arrays), list(chains))


def _in_mm(sample: LocalizerSample, voxels: np.ndarray) -> np.ndarray:
    """Places on a sample in mm to the left, backward and upward, as in LPS but from the sample's first voxel."""
    slices, rows, columns = voxels.T
    left = np.interp(slices, np.arange(len(sample.offsets)), sample.offsets)
    return np.column_stack([left, columns * sample.spacing[1], -rows * sample.spacing[0]])


def cut_off(sample: LocalizerSample, rng: np.random.Generator) -> LocalizerSample:
    """The sample without its lower, one time in four its upper end, from anywhere on, at least `MIN_HEIGHT_MM` high.
    What is left is scaled to its own brightness, as a scan that ends there is."""
    rows = sample.pixels.shape[1]
    shortest = min(rows, int(np.ceil(MIN_HEIGHT_MM / sample.spacing[0])))
    kept = int(rng.integers(shortest, rows + 1))
    first = rows - kept if rng.random() < 0.25 else 0
    try:
        pixels = normalised(sample.pixels[:, first : first + kept].astype(np.float32))
    except LocalizationError:  # nothing but air is left
        return sample
    return replace(sample, pixels=pixels.astype(np.float16), voxels=sample.voxels - [0, first, 0])


def fit_localizer_calibration(
    localizer: DiscLocalizer, samples: Sequence[LocalizerSample], *, seed: int = 0
) -> LocalizerCalibration:
    """Temperature and confidence that fit samples which the networks have not seen, every third one cut off. Of
    temperatures that find nearly as many discs as the best, that is taken whose confidence fits best. Raises
    `DataError` for fewer than 50 discs observed on scans that show the sacrum."""
    rng = np.random.default_rng(seed)
    cut = np.arange(len(samples)) % CUT_EVERY == 0
    samples = [cut_off(sample, rng) if off else sample for sample, off in zip(samples, cut, strict=True)]
    heat_maps = [localizer.predict_heat_maps(sample) for sample in samples]
    trial, fits = DiscLocalizer(localizer.networks, device=localizer.device), []
    for temperature in TEMPERATURES:
        trial.calibration = LocalizerCalibration(temperature=temperature)
        located = locate_samples(trial, samples, heat_maps)
        found = [chain is not None for chain in located.chains]
        chains = [chain for chain in located.chains if chain is not None]
        if not chains:
            raise DataError(f"no chain of discs is found in {len(samples)} series, so no confidence can be fitted")
        known = ~np.isnan(located.error_mm[found])
        near = located.error_mm[found] <= FOUND_MM
        right = near[known]
        logits = clipped_logit(np.stack([chain.posterior for chain in chains]))[known]
        anchored = np.repeat([chain.anchored for chain in chains], known.sum(axis=1))
        observed = np.stack([chain.mass >= OBSERVED for chain in chains])[known]
        usual = observed & anchored
        if usual.sum() < MIN_POINTS:
            raise DataError(f"only {usual.sum()} discs to fit the confidence on, at least {MIN_POINTS} are needed")
        slope, intercept = _fit_logistic(logits[usual], right[usual])
        imputed, unanchored = _smoothed_share(right[~observed & anchored]), _smoothed_share(right[observed & ~anchored])
        calibration = LocalizerCalibration(temperature, slope, intercept, imputed, unanchored)
        confidence = np.stack([calibration.confidence(chain) for chain in chains])[known]
        loss = -float(np.mean(np.log(np.clip(np.where(right, confidence, 1 - confidence), 1e-4, 1))))
        whole = ~cut[found][:, None] & located.in_view[found]  # where a cut-off chain ends is no question of finding
        fits.append((near[whole].sum() / max(whole.sum(), 1), loss, calibration))
    most = max(share for share, _, _ in fits)
    return min((fit for fit in fits if fit[0] >= most - FOUND_TOLERANCE), key=lambda fit: fit[1])[2]


def _fit_logistic(logits: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the logistic curve, with slight regularisation towards 1 and 0."""

    def loss(p: np.ndarray) -> float:
        z = p[0] * logits + p[1]
        return float(np.mean(np.logaddexp(0, z) - right * z) + 1e-4 * ((p[0] - 1) ** 2 + p[1] ** 2))

    slope, intercept = optimize.minimize(loss, [1.0, 0.0], bounds=[(0.05, 5), (-10, 10)]).x
    return float(slope), float(intercept)


def _smoothed_share(right: np.ndarray) -> float:
    """Laplace's rule of succession: as if there were one right and one wrong more than there are."""
    return float((right.sum() + 1) / (len(right) + 2))
