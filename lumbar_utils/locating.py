"""Which disc finder is used, and disc points of many studies: found by it, or taken from the competition's table.

A study that fails costs only itself: the reason comes back beside the results.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from . import __version__
from .errors import DataError
from .labels import CONDITIONS
from .localizer import DiscLocalizer, DiscPoints
from .localizer.evaluation import doubtful_studies, read_reference
from .localizer.samples import STUDIES_A_JOB
from .study import CompetitionFolder, StudySource, find_studies, load_study

logger = logging.getLogger(__name__)


NAMED_AT_MOST = 5
"""Studies that a message lists by their ids."""


def open_localizer(folder: Path | str | None = None, *, device: str = "cpu") -> DiscLocalizer:
    """The disc finder in a folder; None for the one that ships with the library.

    Raises `DataError` when the folder holds none, or the library was installed without its weights.
    """
    return DiscLocalizer.shipped(device=device) if folder is None else DiscLocalizer.load(folder, device=device)


def localizer_origin(localizer: DiscLocalizer, folder: Path | str | None = None) -> str:
    """One line for the user: which disc finder was opened from `folder`, and what it has learnt from."""
    learnt = {"synthetic": "synthetic phantoms", "competition": "the competition's points"}
    # A fine-tuned one names its teachers in turn: "synthetic, competition".
    teachers = [learnt.get(name, name or "unknown data") for name in localizer.config.trained_on.split(", ")]
    where = f"shipped with lumbar_utils {__version__}" if folder is None else str(folder)
    return f"disc finder: {where} (trained on {', then '.join(teachers)})"


def warn_of_studies_learnt_from(localizer: DiscLocalizer, judged: Sequence[str]) -> None:
    """Say so when a disc finder has learnt from studies that are now to be judged."""
    seen = set(localizer.made.get("studies", ())) & set(judged)
    if seen:
        logger.warning(
            "the disc finder has learnt from %d of the %d studies that are to be judged, so their crops, and the score "
            "on them, are better than they would be on new studies: train it with the same fold and seed, or use the "
            "one that ships with the library",
            len(seen),
            len(judged),
        )


def doubtful_words(found: Mapping[str, DiscPoints]) -> str:
    """A line about the studies whose naming is doubtful, the first ones by id; empty when there are none."""
    ids = doubtful_studies(found)
    if not ids:
        return ""
    named = ", ".join(ids[:NAMED_AT_MOST]) + (", ..." if len(ids) > NAMED_AT_MOST else "")
    studies = "1 study" if len(ids) == 1 else f"{len(ids)} studies"
    return f"the naming of the levels is doubtful in {studies}, look at them: {named}"


def locate_studies(
    sources: Sequence[StudySource], localizer: DiscLocalizer, *, progress: bool = True
) -> tuple[dict[str, DiscPoints], dict[str, str]]:
    """Points and failures, each by study id."""
    found: dict[str, DiscPoints] = {}
    failures: dict[str, str] = {}
    for source in tqdm(sources, desc="locating discs", unit="study", disable=not progress):
        try:
            found[source.study_id] = localizer.locate(load_study(source))
        except Exception as error:  # whatever is odd about one study must not stop the others
            failures[source.study_id] = str(error) or type(error).__name__
    _log(failures)
    return found, failures


def locate_folders(
    folders: Mapping[str, Path], localizer: DiscLocalizer, *, progress: bool = True
) -> tuple[dict[str, DiscPoints], dict[str, str]]:
    """Points and failures by the names given, each folder being one study or one series of DICOM files."""
    found: dict[str, DiscPoints] = {}
    failures: dict[str, str] = {}
    for name, folder in tqdm(folders.items(), desc="locating discs", unit="study", disable=not progress):
        try:
            sources = find_studies(folder, progress=False)
            if len(sources) != 1:
                raise DataError(f"{folder}: expected one study, found {len(sources)}")
            found[name] = localizer.locate(load_study(sources[0]))
        except Exception as error:
            failures[name] = str(error) or type(error).__name__
    _log(failures)
    return found, failures


def points_from_table(
    folder: CompetitionFolder, study_ids: Sequence[str], *, n_jobs: int = 2, progress: bool = True
) -> tuple[dict[str, DiscPoints], dict[str, str]]:
    """Canal points of the cleaned `train_label_coordinates.csv`, and failures, each by study id.

    Missing levels are filled from their neighbours and flagged; a study with fewer than two points is a failure.
    """
    folder.clean_coordinates()  # once here, and not once in every worker
    # The folder's tables travel with every job, so a job is a handful of studies.
    parts = [study_ids[i : i + STUDIES_A_JOB] for i in range(0, len(study_ids), STUDIES_A_JOB)]
    work = Parallel(n_jobs=n_jobs, return_as="generator")(delayed(_part_from_table)(folder, part) for part in parts)
    found: dict[str, DiscPoints] = {}
    failures: dict[str, str] = {}
    with tqdm(total=len(study_ids), desc="points", unit="study", disable=not progress) as bar:
        for part, results in zip(parts, work, strict=True):
            for study_id, result in zip(part, results, strict=True):
                (found if isinstance(result, DiscPoints) else failures)[study_id] = result
            bar.update(len(part))
    _log(failures)
    return found, failures


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
    filled = {study_id: np.array([bool(flag) for flag in discs.flags]) for study_id, discs in found.items()}
    return {s: np.where(filled[s][:, None], np.nan, discs.points) for s, discs in found.items()}


def _part_from_table(folder: CompetitionFolder, study_ids: Sequence[str]) -> list[DiscPoints | str]:
    return [_from_table(folder, study_id) for study_id in study_ids]


def _from_table(folder: CompetitionFolder, study_id: str) -> DiscPoints | str:
    try:
        rows = folder.clean_coordinates()[0]
        canal = (rows["study_id"] == study_id) & (rows["condition"] == CONDITIONS[0])
        series_ids = list(dict.fromkeys(rows.loc[canal, "series_id"]))
        if not series_ids:
            return "the table holds no canal point of this study"
        study = folder.load_study(study_id, part="train", series_ids=series_ids)
        points = folder.canal_points(study_id, study)
        series_id = study.series[0].series_id if study.series else ""
        return DiscPoints.from_known(study_id, series_id, points, source="table")
    except Exception as error:
        return str(error) or type(error).__name__


def _log(failures: dict[str, str]) -> None:
    for study_id, reason in failures.items():
        logger.warning("study %s: no disc points: %s", study_id, reason)
