"""The competition's folder: its tables, where its files lie, and its points in the patient.

The real folder holds 147,000 files on slow network storage. Opening it reads the tables only; a study's files are
looked up when that study is loaded, and each file is read once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from ..dicom.headers import scan_headers
from ..dicom.identity import shown_series
from ..dicom.series import Series, read_parts
from ..errors import DataError, DicomError, Issue, counted
from ..files import PLAIN_NAME
from ..labels import CONDITIONS, LEVELS, N_LEVELS, N_TARGETS, VIEWS, encode_severities
from ..notebook_html import progress_bar
from .annotations import COLUMNS as POINT_COLUMNS
from .annotations import clean_coordinates
from .data import Study
from .selection import usable_together

logger = logging.getLogger(__name__)

PARTS = ("train", "test")
SYNTHETIC_MARK = "SYNTHETIC.md"
"""A cohort of phantoms carries this file, so that nobody takes its numbers for patients'."""


@dataclass(frozen=True, eq=False, repr=False)
class CompetitionFolder:
    """A folder laid out like the RSNA 2024 competition's, opened with `CompetitionFolder.open`.

    Parameters
    ----------
    root : Path
    labels : DataFrame or None
        `train.csv`, ids as str.
    coordinates : DataFrame or None
        `train_label_coordinates.csv` as it is, ids as str; `clean_coordinates` corrects it.
    series_table : DataFrame
        study_id, series_id, series_description, part ("train" or "test"); no rows where the tables are absent.
    sample_submission : DataFrame or None
    """

    root: Path
    labels: pd.DataFrame | None
    coordinates: pd.DataFrame | None
    series_table: pd.DataFrame
    sample_submission: pd.DataFrame | None

    @classmethod
    def open(cls, path: Path | str) -> CompetitionFolder:
        """Read the tables of a competition folder; images are not touched.

        Raises
        ------
        DataError
            When the folder is none, or a table lacks columns or cannot be read.
        """
        root = Path(path)
        if not is_competition_folder(root):
            wanted = "train_images, test_images or {train,test}_series_descriptions.csv"
            raise DataError(f"{root} is not a competition folder: expected {wanted} in it")
        columns = ["study_id", "series_id", "series_description", "part"]
        tables = []
        for part in PARTS:
            file = root / f"{part}_series_descriptions.csv"
            table = _read_table(file, tuple(columns[:3]))
            if table is not None:
                for study_id in table["study_id"].unique():
                    _safe_id(study_id, f"{file}: study_id")
                tables.append(table.assign(part=part))
        series_table = pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)
        views = {view.lower(): view for view in VIEWS}
        described = series_table["series_description"].fillna("").astype(str).str.strip()
        series_table = series_table.assign(series_description=[views.get(d.lower(), d) for d in described])
        series_table = series_table.drop_duplicates(["study_id", "series_id", "part"], ignore_index=True)
        labels = _read_table(root / "train.csv", ("study_id",))
        if labels is not None and labels["study_id"].duplicated().any():
            twice = labels.loc[labels["study_id"].duplicated(), "study_id"].iloc[0]
            raise DataError(f"{root / 'train.csv'}: study {twice} has more than one row")
        coordinates = _read_table(root / "train_label_coordinates.csv", POINT_COLUMNS)
        return cls(root, labels, coordinates, series_table, _read_table(root / "sample_submission.csv", ("row_id",)))

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(self.study_ids(part))} {part} studies" for part in PARTS)
        return f"CompetitionFolder({str(self.root)!r}, {counts}{', synthetic' if self.is_synthetic else ''})"

    @property
    def is_synthetic(self) -> bool:
        """Whether the studies are phantoms, made by `lumbar phantom`."""
        return (self.root / SYNTHETIC_MARK).is_file()

    def study_ids(self, part: str) -> list[str]:
        """Ids of the "train" or "test" part: as its table lists them, without a table the folders on disk."""
        return list(self._study_ids[_known_part(part)])

    def study_folder(self, study_id: str, part: str | None = None) -> Path:
        """Folder of a study's series. Raises `DataError` for ids that are no plain name and studies not on disk."""
        folders = self._folders(study_id, part)
        found = next(filter(Path.is_dir, folders), None)
        if found is None:
            raise DataError(f"study {study_id} is not on disk, looked for {' and '.join(map(str, folders))}")
        return found

    def load_study(self, study_id: str, *, part: str | None = None, series_ids: Sequence[str] | None = None) -> Study:
        """Read all series of a study (or those of `series_ids`); views come from the table, else from the headers.

        Raises
        ------
        DataError
            When the id is no plain name.
        DicomError
            When the study is not on disk, or none of its series can be read.
        """
        folders = self._folders(study_id, part)
        folder = next(filter(Path.is_dir, folders), folders[0])
        listed = self.listed_series(folder.name, folder.parent.name.removesuffix("_images"))
        return load_listed_study(folder, folder.name, listed, series_ids=series_ids)

    def listed_series(self, study_id: str, part: str) -> dict[str, str] | None:
        """Series ids and descriptions of a study in the table's order; None when that part has no table."""
        studies = self._listed[_known_part(part)]
        return studies.get(str(study_id), {}) if studies else None

    def label_codes(self, study_ids: Sequence[str]) -> np.ndarray:
        """Labels of studies, int8 (n, 25) in `labels.TARGETS` order, -1 where not labelled.

        Raises
        ------
        DataError
            When there is no `train.csv`, or a study has no row in it.
        """
        if self.labels is None:
            raise DataError(f"{self.root} has no train.csv, so its studies have no labels")
        wanted = [str(study_id) for study_id in study_ids]
        index = pd.Index(self.labels["study_id"]).get_indexer(wanted)
        if (index < 0).any():
            raise DataError(f"study {wanted[int(np.argmin(index))]} has no row in {self.root / 'train.csv'}")
        codes = encode_severities(self.labels)[index] if len(wanted) else np.empty((0, N_TARGETS), np.int8)
        return codes.astype(np.int8, copy=False)

    def clean_coordinates(
        self, *, read_headers: bool = False, progress: bool = False
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The table of points without its annotation errors; see `annotations.clean_coordinates`.

        Parameters
        ----------
        read_headers : bool
            Read the header of every image with a point, to find points outside their image and images that are
            not on disk (about 1 ms a file; 40,000 files in the real set).

        Returns
        -------
        cleaned, report : DataFrame
        """
        if self.coordinates is None:
            raise DataError(f"{self.root} has no train_label_coordinates.csv")
        if not read_headers:
            return self._cleaned
        sizes = self._image_sizes(progress)
        return clean_coordinates(self.coordinates, self._train_series, self.labels, image_sizes=sizes)

    def world_points(self, study: Study) -> pd.DataFrame:
        """The cleaned points of a loaded study in the patient.

        Returns
        -------
        DataFrame
            study_id, series_id, instance_number, condition, level, x, y, z: LPS mm. Points whose series or image
            was not read are left out.
        """
        return points_in_patient(self.clean_coordinates()[0], study)

    def canal_points(self, study_id: str, study: Study) -> np.ndarray:
        """Canal points of the table in LPS mm, float64 (5, 3) in `labels.LEVELS` order, nan where there is none."""
        if study.study_id != str(study_id):
            raise DataError(f"asked for the points of study {study_id} but given study {study.study_id}")
        points = np.full((N_LEVELS, 3), np.nan)
        frame = self.world_points(study)
        for row in frame[frame["condition"] == CONDITIONS[0]].itertuples():
            points[LEVELS.index(row.level)] = row.x, row.y, row.z
        return points

    @cached_property
    def _cleaned(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        return clean_coordinates(self.coordinates, self._train_series, self.labels)

    @cached_property
    def _train_series(self) -> pd.DataFrame:
        return self.series_table[self.series_table["part"] == "train"]

    @cached_property
    def _study_ids(self) -> dict[str, list[str]]:
        ids = {}
        for part in PARTS:
            ids[part] = list(self._listed[part])
            if not ids[part]:
                names = folder_names(self.root / f"{part}_images")
                ids[part] = [name for name in names if name.isdecimal()]
                if len(ids[part]) < len(names):
                    count = counted(len(names) - len(ids[part]), "folder", "folders")
                    logger.warning("%s of %s_images not called by a number left out", count, part)
        return ids

    @cached_property
    def _listed(self) -> dict[str, dict[str, dict[str, str]]]:
        """By part and study id, series ids and descriptions in the table's order; no studies where it has no table."""
        listed: dict[str, dict[str, dict[str, str]]] = {part: {} for part in PARTS}
        for row in self.series_table.itertuples():
            listed[row.part].setdefault(row.study_id, {})[row.series_id] = row.series_description
        return listed

    def _folders(self, study_id: str, part: str | None) -> list[Path]:
        """Where a study may lie, the most probable place first."""
        parts = PARTS if part is None else (_known_part(part),)
        return [self.root / f"{one}_images" / _safe_id(study_id, "study_id") for one in parts]

    def _image_sizes(self, progress: bool) -> dict[tuple[str, str, int], tuple[int, int]]:
        """(study, series, instance) to (rows, columns) of every image with a point; (0, 0) when it is not on disk."""
        sizes = {}
        images = self.coordinates[["study_id", "series_id", "instance_number"]].drop_duplicates()
        numbers = pd.to_numeric(images["instance_number"], errors="coerce")
        images = images.assign(instance_number=numbers)[np.isfinite(numbers)]
        rows = progress_bar(images.itertuples(index=False), total=len(images), desc="image sizes", disable=not progress)
        for study_id, series_id, number in rows:
            if PLAIN_NAME.fullmatch(study_id) and PLAIN_NAME.fullmatch(series_id):
                path = self.root / "train_images" / study_id / series_id / f"{int(number)}.dcm"
                sizes[study_id, series_id, int(number)] = scan_headers(path)[0].shape[1:]
        return sizes


def points_in_patient(cleaned: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Cleaned points of a table in the competition's form, as `CompetitionFolder.world_points` gives them."""
    rows = []
    for row in cleaned[cleaned["study_id"] == study.study_id].itertuples():
        series = study.series_by_id(row.series_id)
        place = series.slice_of(row.instance_number) if series is not None else None
        if place is None:
            continue
        point = series.stacks[place[0]].geometry[place[1]].pixel_to_world([row.x, row.y])
        rows.append((row.study_id, row.series_id, row.instance_number, row.condition, row.level, *point))
    return pd.DataFrame(rows, columns=[*POINT_COLUMNS, "z"])


def is_competition_folder(path: Path | str) -> bool:
    """Whether a folder has the competition's series tables, or image folders in which studies are called by numbers."""
    if any((Path(path) / f"{part}_series_descriptions.csv").is_file() for part in PARTS):
        return True
    images = [folder for part in PARTS if (folder := Path(path) / f"{part}_images").is_dir()]
    names = [name for folder in images for name in folder_names(folder)]
    return bool(images) and (not names or any(map(str.isdecimal, names)))


def load_listed_study(
    folder: Path, study_id: str, listed: Mapping[str, str] | None, *, series_ids: Sequence[str] | None = None
) -> Study:
    """Read a study laid out as `<study>/<series>/<instance>.dcm`; `listed` are its rows of the table, if any."""
    if not folder.is_dir():
        raise DicomError("the study is not on disk", path=folder, study_id=study_id)
    described = dict(listed or {})
    on_disk = folder_names(folder)
    series: list[Series] = []
    issues: list[Issue] = []
    for series_id in [*described, *(name for name in on_disk if name not in described)]:
        if series_ids is not None and series_id not in series_ids:
            continue
        description = described.get(series_id, "")
        view = description if description in VIEWS else ""
        if series_id not in on_disk:
            odd = "" if PLAIN_NAME.fullmatch(series_id) else " (and its id is no plain name)"
            text = f"listed as {description!r} but not on disk{odd}"
            issues.append(Issue("series_not_on_disk", text, study_id, series_id))
            continue
        path = folder / series_id
        series_id = series_id if series_id in described else shown_series(series_id)
        try:
            read = read_parts(path, study_id, series_id, view, numbered_by_file_name=True)
        except DicomError as error:
            issues.append(Issue("series_unreadable", error.issue, study_id, series_id))
            continue
        series += read
        if listed is not None and not view:
            code, why = "series_not_listed", "on disk but not in the table"
            if series_id in described:
                code, why = "series_description_unknown", f"described as {description!r}"
            text = f"{why}, recognised as {read[0].view or 'no view that is used'}"
            issues.append(Issue(code, text, study_id, series_id))
    if not series:
        none = "it has no series folders" if series_ids is None else f"it holds none of the series {list(series_ids)}"
        reasons = "; ".join(map(str, issues)) or none
        raise DicomError(f"no series can be read: {reasons}", path=folder, study_id=study_id)
    return usable_together(study_id, series, issues)


def _read_table(path: Path, required: tuple[str, ...]) -> pd.DataFrame | None:
    """A CSV with ids as str, None where the file is absent."""
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path, dtype={"study_id": str, "series_id": str, "row_id": str})
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors, so are broken encodings
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    absent = [column for column in required if column not in table.columns]
    if absent:
        raise DataError(f"{path} lacks the columns {absent}, it has {list(table.columns)[:8]}")
    for column in ("study_id", "series_id"):
        if column in required and table[column].isna().any():
            raise DataError(f"{path} has {int(table[column].isna().sum())} rows without {column}")
    return table


def in_synthetic_cohort(path: Path) -> bool:
    """Whether a study's or a series' folder lies in a cohort of phantoms."""
    path = path.absolute()
    images = {f"{part}_images" for part in PARTS}
    return any((p.parent / SYNTHETIC_MARK).is_file() for p in [path, *path.parents][:3] if p.name in images)


def folder_names(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; none when it does not exist."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _known_part(part: str) -> str:
    if part not in PARTS:
        raise DataError(f"part {part!r} is not known, expected one of {PARTS}")
    return part


def _safe_id(value: str, name: str) -> str:
    """An id that is joined to a path must be one plain name: a table could otherwise lead out of the folder."""
    if not PLAIN_NAME.fullmatch(str(value)):
        raise DataError(f"{name} {value!r} is no plain name of letters, digits, blanks, '.', '_' and '-'")
    return str(value)
