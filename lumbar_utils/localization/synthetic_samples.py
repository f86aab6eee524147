"""Training material straight from phantoms, scanned in a few slices, never written to disk.

Every second body is randomised. A body's scan costs a tenth of a second, so every training can have thousands of
people, each in another contrast, field of view and position. Unlike the competition's table, a phantom knows the
neighbours of the five discs too.
"""

from __future__ import annotations

import logging

import numpy as np
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from ..dicom.series import Stack
from ..errors import DataError
from ..phantom.anatomy import build_body
from ..phantom.disease import sample_person
from ..phantom.scanner import acquire, localizer_protocol
from .preprocessing import LocalizationError, sagittal_volume
from .samples import LocalizerSample

logger = logging.getLogger(__name__)

RENDERED_SHARE = 0.75
"""Pixels are rendered at this share of the network's and averaged, as real ones are."""
BODIES_A_JOB = 16
PLAIN_EVERY = 2
"""Every second body is an ordinary person in an ordinary scan: what is far from reality must not be all there is."""
_STREAM_LOCALIZER = 41


def synthetic_samples(
    bodies: range,
    seed: int,
    pixel_mm: float,
    *,
    scans: int = 2,
    n_slices: int = 5,
    n_jobs: int = 2,
    progress: bool = True,
) -> list[LocalizerSample]:
    """Scan bodies, every second one randomised, for the localizer.

    Parameters
    ----------
    bodies : range
        Numbers of the bodies; the same number and seed give the same body and scans.
    seed : int
        Other seeds give other people.
    pixel_mm : float
        The network's pixel size.
    scans : int
        Series of each body, each with its own contrast, field of view and position.
    n_slices : int
        Slices of each series.

    Returns
    -------
    list of LocalizerSample
        With `voxels` of shape (8, 3) in the order of `network.CHAIN`. `scans` for each body, in order, less the few
        that show nothing.
    """
    if scans < 1 or n_slices < 1:
        raise DataError(f"a body must be scanned at least once in one slice, got {scans} scans of {n_slices}")
    parts = [bodies[i : i + BODIES_A_JOB] for i in range(0, len(bodies), BODIES_A_JOB)]
    jobs = Parallel(n_jobs=n_jobs, return_as="generator")(
        delayed(_scan_bodies)(part, seed, pixel_mm, scans, n_slices) for part in parts
    )
    samples: list[LocalizerSample] = []
    with tqdm(total=len(bodies), desc="synthetic bodies", unit="body", disable=not progress) as bar:
        for part, made in zip(parts, jobs, strict=True):
            samples += made
            bar.update(len(part))
    return samples


def _scan_bodies(bodies: range, seed: int, pixel_mm: float, scans: int, n_slices: int) -> list[LocalizerSample]:
    with threadpool_limits(1):  # how a product is split among threads can change its last bit
        return [s for index in bodies for s in scan_body(index, seed, pixel_mm, scans=scans, n_slices=n_slices)]


def is_randomised(sample: LocalizerSample) -> bool:
    """Whether a sample that was made here shows a randomised body, and not an ordinary person."""
    return _randomised(int(sample.study_id.rpartition("-")[2]))


def _randomised(index: int) -> bool:
    return index % PLAIN_EVERY != 0


def scan_body(index: int, seed: int, pixel_mm: float, *, scans: int = 1, n_slices: int = 5) -> list[LocalizerSample]:
    """Scan body `index` of the people of `seed`; see `synthetic_samples`."""
    randomise = _randomised(index)
    body = build_body(sample_person(index, seed, randomise=randomise))
    made = []
    for number in range(scans):
        rng = np.random.default_rng([seed, index, number, _STREAM_LOCALIZER])
        protocol = localizer_protocol(
            body, rng, pixel_mm=RENDERED_SHARE * pixel_mm, n_slices=n_slices, randomise=randomise
        )
        geometry, pixels = acquire(body, protocol, rng)[0]
        stack = Stack(pixels.astype(np.float32), geometry, tuple(range(1, len(geometry) + 1)), ())
        try:
            volume = sagittal_volume(stack, pixel_mm)
        except LocalizationError as error:
            logger.info("body %d of seed %d, scan %d: %s", index, seed, number, error)
            continue
        made.append(
            LocalizerSample(
                f"synthetic-{seed}-{index}",
                str(number),
                protocol.view,
                volume.pixels.astype(np.float16),
                volume.to_voxel(body.truth.chain),
                volume.offsets,
                volume.spacing,
            )
        )
    return made
