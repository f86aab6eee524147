"""Training data of the localizer: preprocessed sagittal volumes with their canal points, kept small in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from ..dicom.series import Series
from ..errors import DataError, LumbarError
from ..labels import SAGITTAL_T1, SAGITTAL_T2
from ..notebook_html import progress_bar
from ..parallel import JobFailure, run_jobs
from ..studies.study import CompetitionFolder
from .network import CHAIN
from .preprocessing import SagittalVolume, series_volumes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LocalizerSample:
    """One sagittal volume and where the discs are in it."""

    study_id: str
    series_id: str
    view: str
    pixels: np.ndarray  # float16 (n, H, W) as in `SagittalVolume`
    # Canal points as fractional (slice, row, column), nan where not known: (5, 3) in the order of `labels.LEVELS`, or
    # (8, 3) in that of `network.CHAIN`.
    voxels: np.ndarray
    offsets: np.ndarray  # (n,) mm of the slices from right to left
    spacing: tuple[float, float]  # mm between rows and between columns

    @classmethod
    def of(
        cls, volume: SagittalVolume, points: np.ndarray, study_id: str, series_id: str, view: str
    ) -> LocalizerSample:
        """A volume with its canal points in LPS mm, nan rows where unknown."""
        pixels, voxels = volume.pixels.astype(np.float16), volume.to_voxel(np.asarray(points, dtype=np.float64))
        return cls(study_id, series_id, view, pixels, voxels, volume.offsets, volume.spacing)

    def in_chain(self, chain: tuple[str, ...]) -> LocalizerSample:
        """The same with the points of a chain's levels only; raises `DataError` where it does not know them."""
        if len(self.voxels) == len(chain):
            return self
        if len(self.voxels) == len(CHAIN):
            return replace(self, voxels=self.voxels[[CHAIN.index(level) for level in chain]])
        raise DataError(
            f"study {self.study_id}, series {self.series_id}: points of {len(self.voxels)} levels, but the network "
            f"looks for {len(chain)} ({', '.join(chain)})"
        )


def sample_from_series(series: Series, points: np.ndarray, pixel_mm: float) -> LocalizerSample:
    """The largest stack of a series with its canal points (5, 3) in LPS mm, nan rows where unknown."""
    volume = next(series_volumes(series, pixel_mm))
    return LocalizerSample.of(volume, points, series.study_id, series.series_id, series.view)


def load_samples(
    folder: CompetitionFolder, study_ids: Sequence[str], pixel_mm: float, *, n_jobs: int = 2, progress: bool = True
) -> list[LocalizerSample]:
    """The sagittal T2 and T1 series of many studies, with the points of the cleaned table. Studies without two known
    points or a readable sagittal series are logged and left out; `DataError` when none is left."""
    study_ids = [str(study_id) for study_id in study_ids]
    tasks = ((one, s, pixel_mm) for one, s in zip(single_study_folders(folder, study_ids), study_ids, strict=True))
    found, _ = each_study(_samples_of_study, tasks, study_ids, "sagittal series", n_jobs=n_jobs, progress=progress)
    samples = [sample for of_study in found.values() for sample in of_study]
    if not samples:
        raise DataError(f"none of {len(study_ids)} studies has a sagittal series with canal points to train on")
    return samples


def each_study(
    function: Callable, tasks: Iterable[tuple], names: Sequence[str], title: str, *, progress: bool, **options
) -> tuple[dict[str, Any], dict[str, str]]:
    """Results of a job a study, and why jobs failed, by name and in the order of the names; `options` of `run_jobs`."""
    bar = progress_bar(
        run_jobs(function, tasks, **options), total=len(names), desc=title, unit="study", disable=not progress
    )
    outcome = {names[index]: result for index, result in sorted(bar, key=itemgetter(0))}
    failures = {name: result.reason for name, result in outcome.items() if isinstance(result, JobFailure)}
    for name, reason in failures.items():
        logger.warning("study %s: no %s: %s", name, title, reason)
    return {name: result for name, result in outcome.items() if name not in failures}, failures


def single_study_folders(folder: CompetitionFolder, study_ids: Sequence[str]) -> Iterator[CompetitionFolder]:
    """For each study the folder with that study's rows alone, so small that it can be sent to a worker. Raises
    `DataError` when the folder has no table of points."""
    if folder.coordinates is None:
        raise DataError(f"{folder.root} has no train_label_coordinates.csv")
    folder = replace(folder, root=Path(folder.root).absolute(), labels=None, sample_submission=None)
    train = folder.series_table[folder.series_table["part"] == "train"]
    points_of, series_of = (dict(list(table.groupby("study_id"))) for table in (folder.coordinates, train))
    # Annotations are cleaned study by study, so the workers can do it.
    return (
        replace(folder, coordinates=points_of.get(s, folder.coordinates[:0]), series_table=series_of.get(s, train[:0]))
        for s in study_ids
    )


def _samples_of_study(folder: CompetitionFolder, study_id: str, pixel_mm: float) -> list[LocalizerSample]:
    """One sample for each sagittal series; a series that cannot be used is logged and left out."""
    table, sagittal = folder.series_table, (SAGITTAL_T2, SAGITTAL_T1)
    wanted = table.loc[table["series_description"].isin(sagittal), "series_id"]
    study = folder.load_study(study_id, part="train", series_ids=list(wanted))
    points = folder.canal_points(study_id, study)
    if np.isfinite(points).all(axis=1).sum() < 2:
        logger.info("study %s has fewer than two canal points and is left out of the localizer's training", study_id)
        return []
    samples = []
    for series in study.series:
        try:
            samples += [sample_from_series(series, points, pixel_mm)] if series.view in sagittal else []
        except LumbarError as error:
            logger.warning("left out of the localizer's training: %s", error)
    return samples
