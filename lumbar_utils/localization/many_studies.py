"""Disc points of many studies: located, or taken from the competition's table.

A study that fails costs only itself: the reason comes back beside the results.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError, counted
from ..labels import CONDITIONS
from ..notebook_html import progress_bar
from ..parallel import JobFailure, run_jobs, stays_here
from ..studies.study import CompetitionFolder, StudySource, find_studies, load_study
from .evaluation import low_confidence_studies, read_reference
from .localizer import DiscLocalizer
from .localizer_files import LocalizerFiles
from .points import DiscPoints
from .samples import single_study_folders

logger = logging.getLogger(__name__)

MAX_LISTED = 5
"""Studies that a message lists by their ids."""


def low_confidence_message(found: Mapping[str, DiscPoints]) -> str:
    """A line about the studies with low confidence at all levels, the first ones by id; empty when there are none."""
    ids = low_confidence_studies(found)
    if not ids:
        return ""
    listed = ", ".join(ids[:MAX_LISTED]) + (", ..." if len(ids) > MAX_LISTED else "")
    return f"the level labelling has low confidence in {counted(len(ids))}, look at them: {listed}"


def locate_studies(
    sources: Sequence[StudySource], localizer: DiscLocalizer, *, n_jobs: int = 1, progress: bool = True
) -> tuple[dict[str, DiscPoints], dict[str, str]]:
    """Points and failures, each by study id.

    `n_jobs` worker processes read and locate, unless a user's `joblib.parallel_config` says otherwise; see
    `parallel.run_jobs`. They are threads of this process where the localizer works on a GPU.
    """
    tasks = ((source.absolute(),) for source in sources)
    return _locate(_locate_source, tasks, [s.study_id for s in sources], localizer, n_jobs=n_jobs, progress=progress)


def locate_folders(
    folders: Mapping[str, Path], localizer: DiscLocalizer, *, n_jobs: int = 1, progress: bool = True
) -> tuple[dict[str, DiscPoints], dict[str, str]]:
    """Points and failures by the names given, each folder being one study or one series of DICOM files.

    `n_jobs` as in `locate_studies`.
    """
    tasks = ((Path(folder).absolute(),) for folder in folders.values())
    return _locate(_locate_folder, tasks, list(folders), localizer, n_jobs=n_jobs, progress=progress)


def _locate(
    function: Callable,
    tasks: Iterable[tuple],
    names: Sequence[str],
    localizer: DiscLocalizer,
    *,
    n_jobs: int,
    progress: bool,
) -> tuple[dict[str, DiscPoints], dict[str, str]]:
    n_jobs = n_jobs if len(names) > 1 else 1  # a process takes seconds to start
    threads = getattr(localizer, "device", None) is not None and localizer.device.type != "cpu"
    # In this process the localizer at hand is used; to others its files are sent.
    sent = localizer if stays_here(n_jobs, threads=threads) else LocalizerFiles.of(localizer)
    tasks = ((*task, sent) for task in tasks)
    return _by_name(run_jobs(function, tasks, n_jobs=n_jobs, threads=threads), names, "locating discs", progress)


def _by_name(
    results: Iterator[tuple[int, DiscPoints | JobFailure]], names: Sequence[str], title: str, progress: bool
) -> tuple[dict[str, DiscPoints], dict[str, str]]:
    """Points and failures by name, in the order of the names, of jobs that end in any order."""
    bar = progress_bar(results, total=len(names), desc=title, unit="study", disable=not progress)
    outcome = {names[index]: result for index, result in sorted(bar, key=lambda item: item[0])}
    found = {name: result for name, result in outcome.items() if isinstance(result, DiscPoints)}
    failures = {name: result.reason for name, result in outcome.items() if isinstance(result, JobFailure)}
    for study_id, reason in failures.items():
        logger.warning("study %s: no disc points: %s", study_id, reason)
    return found, failures


def _locate_source(source: StudySource, localizer: DiscLocalizer | LocalizerFiles) -> DiscPoints:
    localizer = localizer.open() if isinstance(localizer, LocalizerFiles) else localizer
    return localizer.locate(load_study(source))


def _locate_folder(folder: Path, localizer: DiscLocalizer | LocalizerFiles) -> DiscPoints:
    sources = find_studies(folder, progress=False)
    if len(sources) != 1:
        raise DataError(f"{folder}: expected one study, found {len(sources)}")
    return _locate_source(sources[0], localizer)


def points_from_table(
    folder: CompetitionFolder, study_ids: Sequence[str], *, n_jobs: int = 2, progress: bool = True
) -> tuple[dict[str, DiscPoints], dict[str, str]]:
    """Canal points of the cleaned `train_label_coordinates.csv`, and failures, each by study id.

    Missing levels are imputed from their neighbours and flagged; a study with fewer than two points is a failure.
    `n_jobs` as in `locate_studies`.
    """
    tasks = zip(single_study_folders(folder, study_ids), study_ids, strict=True)
    return _by_name(run_jobs(_from_table, tasks, n_jobs=n_jobs), study_ids, "points", progress)


def reference_points(
    folder: CompetitionFolder, study_ids: Sequence[str], *, n_jobs: int = 2, progress: bool = True
) -> dict[str, np.ndarray]:
    """Canal points to measure a localizer against, LPS mm (5, 3) by study id, nan where a level is not known.

    Of a synthetic cohort the truth; else the table's points, for those studies that have any.
    """
    truth = folder.root / "truth" / "discs.csv"
    if truth.is_file():
        known = read_reference(truth, point="canal")
        return {study_id: known[study_id] for study_id in study_ids if study_id in known}
    found, _ = points_from_table(folder, study_ids, n_jobs=n_jobs, progress=progress)
    imputed = {study_id: np.array([bool(flag) for flag in discs.flags]) for study_id, discs in found.items()}
    return {s: np.where(imputed[s][:, None], np.nan, discs.points) for s, discs in found.items()}


def _from_table(folder: CompetitionFolder, study_id: str) -> DiscPoints:
    rows = folder.clean_coordinates()[0]
    series_ids = list(dict.fromkeys(rows.loc[rows["condition"] == CONDITIONS[0], "series_id"]))
    if not series_ids:
        raise DataError("the table holds no canal point of this study")
    study = folder.load_study(study_id, part="train", series_ids=series_ids)
    points = folder.canal_points(study_id, study)
    series_id = study.series[0].series_id if study.series else ""
    return DiscPoints.from_known(study_id, series_id, points, source="table")
