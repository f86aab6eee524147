"""Training data straight from phantoms, scanned in a few slices, never written to disk.

Every second body is randomised. A body's scan costs a tenth of a second, so every training can have thousands of
people, each in another contrast, field of view and position. Unlike the competition's table, a phantom knows the
neighbours of the five discs too.
"""

from __future__ import annotations

import logging

import numpy as np
from threadpoolctl import threadpool_limits

from ..dicom.series import Stack
from ..errors import DataError, LumbarError
from ..notebook_html import progress_bar
from ..parallel import JobFailure, run_jobs
from ..phantom.anatomy import Body
from ..phantom.disease import sample_person
from ..phantom.protocol import localizer_protocol
from ..phantom.scanner import acquire
from .preprocessing import LocalizationError, sagittal_volume
from .samples import LocalizerSample

logger = logging.getLogger(__name__)

RENDERED_SHARE = 0.75  # pixels are rendered at this share of the network's and averaged, as real ones are
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
    """Scan bodies, every second one randomised: of each the same person for the same number and `seed`, in `scans`
    series of `n_slices`. Samples with `voxels` in the order of `network.CHAIN`, by body, less the few that show
    nothing."""
    if scans < 1 or n_slices < 1:
        raise DataError(f"a body must be scanned at least once in one slice, got {scans} scans of {n_slices}")
    tasks = ((index, seed, pixel_mm, scans, n_slices) for index in bodies)
    jobs = run_jobs(_scan_body, tasks, n_jobs=n_jobs, ordered=True)
    samples: list[LocalizerSample] = []
    for index, made in progress_bar(
        jobs, total=len(bodies), desc="synthetic bodies", unit="body", disable=not progress
    ):
        if isinstance(made, JobFailure):
            raise LumbarError(f"body {bodies[index]} of seed {seed} cannot be scanned: {made.reason}")
        samples += made
    return samples


def is_randomised(sample: LocalizerSample) -> bool:
    """Whether a sample that was made here shows a randomised body, and not an ordinary person."""
    return int(sample.study_id.rpartition("-")[2]) % PLAIN_EVERY != 0


@threadpool_limits.wrap(limits=1)  # how a product is split among threads can change its last bit
def _scan_body(index: int, seed: int, pixel_mm: float, scans: int, n_slices: int) -> list[LocalizerSample]:
    randomise = index % PLAIN_EVERY != 0
    body = Body(sample_person(index, seed, randomise=randomise))
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
        study_id = f"synthetic-{seed}-{index}"
        made.append(LocalizerSample.of(volume, body.truth.chain, study_id, str(number), protocol.view))
    return made
