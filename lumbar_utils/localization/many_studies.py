"""Disc points of many studies: located, or taken from the competition's table.

A study that fails costs only itself: the reason comes back beside the results.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError, counted
from ..labels import CONDITIONS
from ..studies.study import CompetitionFolder, StudySource, find_studies, load_study
from .evaluation import level_labelling_uncertain, read_reference
from .localizer import DiscLocalizer
from .points import DiscPoints
from .samples import each_study, single_study_folders

logger = logging.getLogger(__name__)

MAX_LISTED = 5  # studies that a message lists by their ids


def low_confidence_message(found: Mapping[str, DiscPoints]) -> str:
    """A line about the studies with low confidence at all levels, the first ones by id; empty when there are none."""
    ids = [study_id for study_id, discs in found.items() if level_labelling_uncertain(discs)]
    if not ids:
        return ""
    listed = ", ".join(ids[:MAX_LISTED]) + (", ..." if len(ids) > MAX_LISTED else "")
    return f"the level labelling has low confidence in {counted(len(ids))}, look at them: {listed}"


def locate_studies(
    sources: Sequence[StudySource], localizer: DiscLocalizer, *, n_jobs: int = 1, progress: bool = True
) -> tuple[dict[str, DiscPoints], dict[str, str]]:
    """Points and failures, each by study id. `n_jobs` worker processes read and locate, see `parallel.run_jobs`; they
    are threads of this process where the localizer works on a GPU."""
    return _locate({source.study_id: source for source in sources}, localizer, n_jobs, progress)


def locate_out_of_fold(
    sources: Sequence[StudySource], localizer: DiscLocalizer, *, n_jobs: int = 1, progress: bool = True
) -> tuple[dict[str, DiscPoints], dict[str, str]]:
    """`locate_studies`, each study by a localizer that has not been trained on it.

    A localizer finds the discs of what it was trained on better than those of new patients. Such studies are located by
    the one that ships with the library, which has learnt from phantoms of its own alone.
    """
    learnt_from = set(localizer.made.get("studies", ()))
    seen = [source for source in sources if source.study_id in learnt_from]
    new = [source for source in sources if source.study_id not in learnt_from]
    found, failures = locate_studies(new, localizer, n_jobs=n_jobs, progress=progress)
    if seen:
        logger.warning("%s located by the shipped localizer, as this one was trained on them", counted(len(seen)))
        shipped = DiscLocalizer.shipped(device=localizer.device)
        found_too, failed_too = locate_studies(seen, shipped, n_jobs=n_jobs, progress=progress)
        found, failures = found | found_too, failures | failed_too
    return found, failures


def locate_folders(
    folders: Mapping[str, Path], localizer: DiscLocalizer, *, n_jobs: int = 1, progress: bool = True
) -> tuple[dict[str, DiscPoints], dict[str, str]]:
    """As `locate_studies`, by the names given; each folder is one study or one series of DICOM files."""
    return _locate({name: Path(folder) for name, folder in folders.items()}, localizer, n_jobs, progress)


def _locate(
    places: Mapping[str, StudySource | Path], localizer: DiscLocalizer, n_jobs: int, progress: bool
) -> tuple[dict[str, DiscPoints], dict[str, str]]:
    n_jobs = n_jobs if len(places) > 1 else 1  # a process takes seconds to start
    threads = getattr(localizer, "device", None) is not None and localizer.device.type != "cpu"
    tasks = ((place.absolute(), localizer) for place in places.values())
    options = {"n_jobs": n_jobs, "threads": threads, "progress": progress}
    return each_study(_locate_place, tasks, list(places), "disc points", **options)


def _locate_place(place: StudySource | Path, localizer: DiscLocalizer) -> DiscPoints:
    if isinstance(place, Path):
        sources = find_studies(place, progress=False)
        if len(sources) != 1:
            raise DataError(f"{place}: expected one study, found {len(sources)}")
        place = sources[0]
    return localizer.locate(load_study(place))


def points_from_table(
    folder: CompetitionFolder, study_ids: Sequence[str], *, n_jobs: int = 2, progress: bool = True
) -> tuple[dict[str, DiscPoints], dict[str, str]]:
    """Canal points of the cleaned `train_label_coordinates.csv`, and failures, each by study id. Missing levels are
    imputed and flagged; a study with fewer than two points is a failure."""
    tasks = zip(single_study_folders(folder, study_ids), study_ids, strict=True)
    return each_study(_from_table, tasks, study_ids, "disc points", n_jobs=n_jobs, progress=progress)


def reference_points(
    folder: CompetitionFolder, study_ids: Sequence[str], *, n_jobs: int = 2, progress: bool = True
) -> dict[str, np.ndarray]:
    """Canal points to measure a localizer against, LPS mm (5, 3) by study id, nan where a level is not known: the truth
    of a synthetic cohort, else the table's points of the studies that have any."""
    truth = folder.root / "truth" / "discs.csv"
    if truth.is_file():
        known = read_reference(truth, point="canal")
        return {study_id: known[study_id] for study_id in study_ids if study_id in known}
    found, _ = points_from_table(folder, study_ids, n_jobs=n_jobs, progress=progress)
    return {
        study_id: np.where([[bool(flag)] for flag in discs.flags], np.nan, discs.points)
        for study_id, discs in found.items()
    }


def _from_table(folder: CompetitionFolder, study_id: str) -> DiscPoints:
    rows = folder.clean_coordinates()[0]
    series_ids = list(dict.fromkeys(rows.loc[rows["condition"] == CONDITIONS[0], "series_id"]))
    if not series_ids:
        raise DataError("the table holds no canal point of this study")
    study = folder.load_study(study_id, part="train", series_ids=series_ids)
    series_id = study.series[0].series_id if study.series else ""
    return DiscPoints.from_known(study_id, series_id, folder.canal_points(study_id, study), source="table")
