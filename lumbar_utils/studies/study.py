"""Studies: the competition's folder with its tables, or any folder of DICOM files without one.

`CompetitionFolder.open(root).load_study("4003253")` reads series and views that the tables name;
`[load_study(source) for source in find_studies(path)]` works on anything and recognises views that no table names.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ..dicom.elements import MODALITIES
from ..dicom.headers import FileHeader, list_files, scan_headers
from ..dicom.identity import is_code, shown_file, shown_series, without_identity
from ..dicom.series import read_parts
from ..errors import DataError, DicomError, Issue, counted
from ..files import file_name, hashed
from .competition import PARTS, CompetitionFolder, is_competition_folder, load_listed_study
from .data import Study
from .grouping import group_images
from .selection import usable_together

__all__ = ["CompetitionFolder", "Study", "StudySource", "find_studies", "is_competition_folder", "load_study"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudySource:
    """Where a study lies; `load_study` reads it. Small, so that thousands can be sent to worker processes.

    `path` is its folder or file. A study found by its headers has the files of each of its `series`, and `issues` about
    files that belong to none. One `in_competition` is laid out as `<study>/<series>/<instance>.dcm`, looked up when it
    is read: `listed` are series ids and descriptions of the table, if there is one, `series_ids` the only ones to read.
    """

    study_id: str
    path: Path
    series: tuple[tuple[str, tuple[Path, ...]], ...] = field(default=(), repr=False)
    in_competition: bool = False
    listed: tuple[tuple[str, str], ...] | None = None
    series_ids: tuple[str, ...] | None = None
    issues: tuple[Issue, ...] = ()

    def absolute(self) -> StudySource:
        """The same, for a process that works in another folder."""
        series = tuple((name, tuple(file.absolute() for file in files)) for name, files in self.series)
        return replace(self, path=self.path.absolute(), series=series)


def find_studies(path: Path | str, *, part: str | None = None, progress: bool = False) -> list[StudySource]:
    """Studies at a path, without reading pixels.

    Parameters
    ----------
    path : path-like
        A competition folder (or a part, a study or a series of one), any folder tree of DICOM files, or one file.
    part : {"train", "test"}, optional
        Only this part of a competition folder, default both; other folders have no parts.

    Returns
    -------
    list of StudySource
        Without tables grouped by StudyInstanceUID and patient (`grouping`). `study_id` is "study-" and the first
        12 digits of the SHA-256 of the StudyInstanceUID; or the name of the study's own folder, where identity was
        removed from the headers and the name is a code or the PatientID. `series_id` is the SeriesInstanceUID, where it
        holds nothing of the patient. What is no MR image is left out, and said in the `issues` of its study or, where a
        study has nothing else, in the log.

    Raises
    ------
    DataError
        When the path does not exist.
    DicomError
        When nothing at the path is a readable DICOM image.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if is_competition_folder(path):
        return _competition_sources(path, (), part)
    if path.is_dir():
        path = Path(os.path.abspath(path))  # without "..", which would be taken for a study's name
        names = [f"{name}_images" for name in PARTS]
        for images in [path, *path.parents][:3]:
            if images.name in names and is_competition_folder(images.parent):
                return _competition_sources(images.parent, path.relative_to(images.parent).parts, None)
    return _plain_sources(path, scan_headers(path, progress=progress))


def load_study(source: StudySource | Path | str) -> Study:
    """Read a study.

    Parameters
    ----------
    source : StudySource or path-like
        A path must hold exactly one study.

    Returns
    -------
    Study
        Series that cannot be read are named in `issues`.

    Raises
    ------
    DicomError
        When none of its series can be read.
    """
    if not isinstance(source, StudySource):
        found = find_studies(source)
        if len(found) != 1:
            raise DataError(f"{source} holds {len(found)} studies, expected one; use find_studies")
        source = found[0]
    if source.in_competition:
        listed = None if source.listed is None else dict(source.listed)
        return load_listed_study(source.path, source.study_id, listed, series_ids=source.series_ids)
    series, issues = [], list(source.issues)
    for series_id, files in source.series:
        try:
            series += read_parts(files, source.study_id, series_id)
        except DicomError as error:
            issues.append(Issue("series_unreadable", error.issue, source.study_id, series_id))
    if not series:  # without the path: its folders may be named after the patient, and this goes into logs
        raise DicomError(f"no series can be read: {'; '.join(map(str, issues))}", study_id=source.study_id)
    return usable_together(source.study_id, series, issues)


def _competition_sources(root: Path, inside: Sequence[str], part: str | None) -> list[StudySource]:
    """Sources of a competition folder, or of the part, study or series of it that `inside` leads to."""
    folder = CompetitionFolder.open(root)
    if inside:
        part = inside[0].removesuffix("_images")
    series_ids = tuple(inside[2:3]) or None
    sources = []
    for one in PARTS if part is None else (part,):
        for study_id in inside[1:2] or folder.study_ids(one):
            listed = folder.listed_series(study_id, one)
            rows = None if listed is None else tuple(listed.items())
            path = root / f"{one}_images" / study_id
            sources.append(StudySource(study_id, path, (), True, rows, series_ids))
    return sources


def _plain_sources(path: Path, headers: list[FileHeader]) -> list[StudySource]:
    """Group headers by study and series; files that are no images join the only series or study of their folder."""
    studies: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    others: Counter[tuple[str, str, str]] = Counter()
    below: dict[Path, set[str]] = defaultdict(set)
    series_in: dict[Path, set[tuple[str, str]]] = defaultdict(set)
    identities: dict[str, set[str]] = defaultdict(set)
    pseudonyms: dict[str, set[str | None]] = defaultdict(set)
    images = [header for header in headers if header.shape[0]]
    keys, issues = group_images(images)
    for header, (study, series) in zip(images, keys, strict=True):
        identities[study] |= header.acquisition.identity
        pseudonyms[study].add(header.acquisition.pseudonym)
        if not header.acquisition.is_mr:
            modality = str(header.acquisition.header["Modality"]).upper()
            others[study, series, modality if modality in MODALITIES else "unknown"] += 1
            continue
        studies[study][series].append(header.path)
        series_in[header.path.parent].add((study, series))
        for folder in header.path.parents:
            below[folder].add(study)
    everyone = frozenset().union(*(header.acquisition.identity for header in headers))
    if not studies:
        reason = f"; {shown_file(headers[0].path, 1, len(headers))}: {headers[0].issue}" if headers else ""
        if others:
            modalities = sorted(Counter(modality for _, _, modality in others.elements()).items())
            reason = ": it holds " + ", ".join(f"{count} of modality {modality}" for modality, count in modalities)
        words = f"holds no readable MR image in {counted(len(headers), 'file', 'files')}{reason}"
        if not headers:
            words = "holds no file that may be DICOM; archives such as ZIP have to be unpacked first"
        raise DicomError(without_identity(words, everyone), path=path)
    for (study, series, modality), count in others.items():
        text = f"{count} images of modality {modality}, expected MR, left out"
        if study in studies:
            issues[study].append(Issue("series_not_mr", text, series_id=series))
        else:
            logger.warning("%s has no MR image: %s", hashed("study", study), text)
    for number, header in enumerate(headers, start=1):
        if header.shape[0]:
            continue
        here = series_in.get(header.path.parent, set())
        if len(here) == 1:
            study, series = next(iter(here))
            studies[study][series].append(header.path)
            continue
        # Neither belongs it to one series; then its study is told, by the UID or by the nearest folder with images.
        near = next((below[folder] for folder in header.path.parents if folder in below), set())
        file = shown_file(header.path, number, len(headers))
        owners = {header.study_uid} & studies.keys() or {study for study, _ in here} or near
        if len(owners) == 1:
            issues[next(iter(owners))].append(Issue("file_unreadable", header.issue, file=file))
        else:
            logger.warning("%s belongs to no study: %s", without_identity(file, everyone), header.issue)
    folders = {study: _own_folder(study, all_series, path, below) for study, all_series in studies.items()}
    sources = []
    for study, of_study in studies.items():
        name, identity = _study_name(study, folders, pseudonyms[study]), identities[study]
        hide = partial(without_identity, identity=identity)
        series = tuple((shown_series(one, identity), tuple(list_files(files))) for one, files in of_study.items())
        own = []
        for issue in issues[study]:
            series_id = issue.series_id and shown_series(issue.series_id, identity)
            own.append(replace(issue, study_id=name, series_id=series_id).rewritten(hide))
        sources.append(StudySource(name, _common_folder(of_study), series, issues=tuple(own)))
    return sources


def _own_folder(study: str, series: dict[str, list[Path]], path: Path, below: dict[Path, set[str]]) -> str:
    """Name of the given folder when it holds one study, else of the highest with no other, "" where there is none."""
    if not path.is_dir():
        return path.stem
    own = path
    if len(below[path]) > 1:
        own = _common_folder(series)
        if len(below[own]) > 1:
            return ""
        while len(below[own.parent]) == 1:
            own = own.parent
    return own.name


def _study_name(study: str, folders: dict[str, str], pseudonyms: set[str | None]) -> str:
    """The folder's name where identity was removed from all headers and the name is a code or their PatientID.

    Else, and where another study's folder is called the same, the hash of the StudyInstanceUID: ids go into every
    table, log, picture and file's name, and people call folders by patients.
    """
    name = folders[study]
    known = None not in pseudonyms and (is_code(name) or name in pseudonyms)
    return file_name(name) if known and list(folders.values()).count(name) == 1 else hashed("study", study)


def _common_folder(series: dict[str, list[Path]]) -> Path:
    return Path(os.path.commonpath([file.parent for files in series.values() for file in files]))
