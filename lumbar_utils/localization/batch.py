"""Which localizer is used, and disc points of many studies: found by it, or taken from the competition's table.

A study that fails costs only itself: the reason comes back beside the results.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from .. import __version__
from ..errors import DataError
from ..labels import CONDITIONS
from ..parallel import JobFailure, run_jobs, stays_here
from ..studies.study import CompetitionFolder, StudySource, find_studies, load_study
from . import DiscLocalizer, DiscPoints
from .evaluation import low_confidence_studies, read_reference
from .localizer import SHIPPED_WEIGHTS

logger = logging.getLogger(__name__)


NAMED_AT_MOST = 5
"""Studies that a message lists by their ids."""


def open_localizer(folder: Path | str | None = None, *, device: str = "cpu") -> DiscLocalizer:
    """The localizer in a folder; None for the one that ships with the library.

    Raises `DataError` when the folder holds none, or the library was installed without its weights.
    """
    return DiscLocalizer.shipped(device=device) if folder is None else DiscLocalizer.load(folder, device=device)


def localizer_origin(localizer: DiscLocalizer, folder: Path | str | None = None) -> str:
    """One line for the user: which localizer was opened from `folder`, and what it has learnt from."""
    learnt = {"synthetic": "synthetic phantoms", "competition": "the competition's points"}
    # A fine-tuned one names its teachers in turn: "synthetic, competition".
    teachers = [learnt.get(name, name or "unknown data") for name in localizer.config.trained_on.split(", ")]
    where = f"shipped with lumbar_utils {__version__}" if folder is None else str(folder)
    return f"localizer: {where} (trained on {', then '.join(teachers)})"


def warn_of_studies_learnt_from(localizer: DiscLocalizer, judged: Sequence[str]) -> None:
    """Say so when a localizer has learnt from studies that are now to be judged."""
    seen = set(localizer.made.get("studies", ())) & set(judged)
    if seen:
        logger.warning(
            "the localizer has learnt from %d of the %d studies that are to be judged, so their crops, and the score "
            "on them, are better than they would be on new studies: train it with the same fold and seed, or use the "
            "one that ships with the library",
            len(seen),
            len(judged),
        )


def low_confidence_message(found: Mapping[str, DiscPoints]) -> str:
    """A line about the studies whose naming is doubtful, the first ones by id; empty when there are none."""
    ids = low_confidence_studies(found)
    if not ids:
        return ""
    named = ", ".join(ids[:NAMED_AT_MOST]) + (", ..." if len(ids) > NAMED_AT_MOST else "")
    studies = "1 study" if len(ids) == 1 else f"{len(ids)} studies"
    return f"the naming of the levels is doubtful in {studies}, look at them: {named}"


@dataclass(frozen=True)
class LocalizerFiles:
    """A localizer by its files, to be sent to workers: a few paths instead of its tensors.

    Each process reads the files once, and again only when they have changed. The localizer that ships with the library
    is that of the worker's own copy, wherever it is installed.
    """

    weights: Path | None
    note: Path | None
    device: str
    state: tuple[int, ...] = ()

    @classmethod
    def of(cls, localizer: DiscLocalizer) -> LocalizerFiles | DiscLocalizer:
        """The files that it was read from; the localizer itself where it was made in this session, or is not ours."""
        files = getattr(localizer, "files", None)
        if files is None:
            return localizer
        if files[0] == SHIPPED_WEIGHTS:
            return cls(None, None, str(localizer.device))
        weights, note = (file.absolute() for file in files)
        state = tuple(value for file in (weights, note) for value in (file.stat().st_mtime_ns, file.stat().st_size))
        return cls(weights, note, str(localizer.device), state)

    def open(self) -> DiscLocalizer:
        """The localizer, kept for the next call in this process."""
        return _opened(self)


@lru_cache(maxsize=1)
def _opened(files: LocalizerFiles) -> DiscLocalizer:
    if files.weights is None:
        return DiscLocalizer.shipped(device=files.device)
    return DiscLocalizer.read(files.weights, files.note, device=files.device)


def locate_studies(
    sources: Sequence[StudySource], localizer: DiscLocalizer, *, n_jobs: int = 1, progress: bool = True
) -> tuple[dict[str, DiscPoints], dict[str, str]]:
    """Points and failures, each by study id.

    `n_jobs` worker processes read and locate, unless a user's `joblib.parallel_config` says otherwise; see
    `jobs.run_jobs`. They are threads of this process where the localizer works on a GPU.
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
    # In this process the localizer at hand is used; elsewhere it is named by its files.
    sent = localizer if stays_here(n_jobs, threads=threads) else LocalizerFiles.of(localizer)
    tasks = ((*task, sent) for task in tasks)
    return _sorted(run_jobs(function, tasks, n_jobs=n_jobs, threads=threads), names, "locating discs", progress)


def _sorted(
    results: Iterator[tuple[int, DiscPoints | JobFailure]], names: Sequence[str], title: str, progress: bool
) -> tuple[dict[str, DiscPoints], dict[str, str]]:
    """Points and failures by name, in the order of the names, of jobs that end in any order."""
    outcome: dict[int, DiscPoints | JobFailure] = {}
    with tqdm(total=len(names), desc=title, unit="study", disable=not progress) as bar:
        for index, result in results:
            outcome[index] = result
            bar.update()
    found = {names[i]: outcome[i] for i in sorted(outcome) if isinstance(outcome[i], DiscPoints)}
    failures = {names[i]: outcome[i].reason for i in sorted(outcome) if isinstance(outcome[i], JobFailure)}
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

    Missing levels are filled from their neighbours and flagged; a study with fewer than two points is a failure.
    `n_jobs` as in `locate_studies`.
    """
    if folder.coordinates is None:
        raise DataError(f"{folder.root} has no train_label_coordinates.csv")
    root, coordinates, series = Path(folder.root).absolute(), folder.coordinates, folder.series_table
    points_of = dict(list(coordinates.groupby("study_id")))
    series_of = dict(list(series[series["part"] == "train"].groupby("study_id")))
    # A study's own rows travel, not the tables. Cleaning looks at one study at a time, so it can be done there.
    tasks = (
        (CompetitionFolder(root, None, points_of.get(s, coordinates[:0]), series_of.get(s, series[:0]), None), s)
        for s in study_ids
    )
    return _sorted(run_jobs(_from_table, tasks, n_jobs=n_jobs), study_ids, "points", progress)


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


def _from_table(folder: CompetitionFolder, study_id: str) -> DiscPoints:
    rows = folder.clean_coordinates()[0]
    series_ids = list(dict.fromkeys(rows.loc[rows["condition"] == CONDITIONS[0], "series_id"]))
    if not series_ids:
        raise DataError("the table holds no canal point of this study")
    study = folder.load_study(study_id, part="train", series_ids=series_ids)
    points = folder.canal_points(study_id, study)
    series_id = study.series[0].series_id if study.series else ""
    return DiscPoints.from_known(study_id, series_id, points, source="table")
