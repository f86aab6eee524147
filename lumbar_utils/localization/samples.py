"""Training data of the localizer: prepared sagittal volumes with their canal points, kept small in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from ..errors import DataError, LumbarError
from ..labels import N_LEVELS, SAGITTAL_T1, SAGITTAL_T2
from .preprocessing import series_volume

if TYPE_CHECKING:
    from ..dicom.series import Series
    from ..studies.study import CompetitionFolder, Study

logger = logging.getLogger(__name__)

STUDIES_A_JOB = 8


@dataclass(frozen=True, eq=False)
class LocalizerSample:
    """One sagittal volume and where the discs are in it.

    `pixels` is float16 (n, H, W) as in `SagittalVolume`; `voxels` are the canal points as fractional (slice, row,
    column), nan where not known: (5, 3) in the order of `labels.LEVELS`, or (8, 3) in that of `network.CHAIN`;
    `offsets` (n,) are the slices' mm from right to left; `spacing` the mm between rows and columns.
    """

    study_id: str
    series_id: str
    view: str
    pixels: np.ndarray
    voxels: np.ndarray
    offsets: np.ndarray
    spacing: tuple[float, float]


def sample_from_series(series: Series, points: np.ndarray, pixel_mm: float) -> LocalizerSample:
    """Prepare a series with its canal points (5, 3) in LPS mm, nan rows where unknown."""
    points = np.asarray(points, dtype=np.float64)
    if points.shape != (N_LEVELS, 3):
        raise DataError(f"study {series.study_id}: points must have shape ({N_LEVELS}, 3), got {points.shape}")
    volume = series_volume(series, pixel_mm)
    return LocalizerSample(
        series.study_id,
        series.series_id,
        series.view,
        volume.pixels.astype(np.float16),
        volume.to_voxel(points),
        volume.offsets,
        volume.spacing,
    )


def samples_from_study(
    study: Study, points: np.ndarray, pixel_mm: float, views: Sequence[str] = (SAGITTAL_T2, SAGITTAL_T1)
) -> list[LocalizerSample]:
    """One sample for each sagittal series of the views; a series that cannot be used is logged and left out."""
    samples = []
    for series in study.series:
        if series.view not in views:
            continue
        try:
            samples.append(sample_from_series(series, points, pixel_mm))
        except LumbarError as error:
            logger.warning("left out of the localizer's training: %s", error)
    return samples


def load_samples(
    folder: CompetitionFolder,
    study_ids: Sequence[str],
    pixel_mm: float,
    *,
    views: Sequence[str] = (SAGITTAL_T2, SAGITTAL_T1),
    n_jobs: int = 2,
    progress: bool = True,
) -> list[LocalizerSample]:
    """Read and prepare the sagittal series of many studies of a competition folder.

    The points come from the folder's cleaned coordinate table (`CompetitionFolder.canal_points`).
    Studies without at least two known points, or without a readable sagittal series, are logged and left out.
    """
    study_ids = [str(study_id) for study_id in study_ids]
    folder.clean_coordinates()  # kept by the folder, so the workers need not clean the table again
    # The folder's tables travel with every job, so a job is a handful of studies.
    parts = [study_ids[i : i + STUDIES_A_JOB] for i in range(0, len(study_ids), STUDIES_A_JOB)]
    jobs = Parallel(n_jobs=n_jobs, return_as="generator")(
        delayed(_load_part)(folder, part, pixel_mm, tuple(views)) for part in parts
    )
    samples: list[LocalizerSample] = []
    with tqdm(total=len(study_ids), desc="sagittal series", unit="study", disable=not progress) as bar:
        for part, found in zip(parts, jobs, strict=True):
            samples += found
            bar.update(len(part))
    if not samples:
        raise DataError(f"none of {len(study_ids)} studies has a sagittal series with canal points to train on")
    return samples


def _load_part(
    folder: CompetitionFolder, study_ids: Sequence[str], pixel_mm: float, views: tuple[str, ...]
) -> list[LocalizerSample]:
    return [sample for study_id in study_ids for sample in _load_one(folder, study_id, pixel_mm, views)]


def _load_one(
    folder: CompetitionFolder, study_id: str, pixel_mm: float, views: tuple[str, ...]
) -> list[LocalizerSample]:
    try:
        table = folder.series_table
        wanted = table.loc[(table["study_id"] == study_id) & table["series_description"].isin(views), "series_id"]
        study = folder.load_study(study_id, part="train", series_ids=list(wanted))
        points = folder.canal_points(study_id, study)
    except LumbarError as error:
        logger.warning("left out of the localizer's training: study %s: %s", study_id, error)
        return []
    if np.isfinite(points).all(axis=1).sum() < 2:
        logger.info("study %s has fewer than two canal points and is left out of the localizer's training", study_id)
        return []
    return samples_from_study(study, points, pixel_mm, views)
