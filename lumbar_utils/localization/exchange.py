"""Canal points to and from other programs and teams, and the correction of their names.

3D Slicer keeps points as markups (`.mrk.json`): positions in LPS mm, as ours are, one point list a file. Its schema is
Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json in Slicer's sources. Kaggle's teams keep them in
the form of the competition's `train_label_coordinates.csv`, in pixels of images, which must be at hand.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import DataError, counted
from ..files import write_json
from ..geometry import INFERIOR
from ..labels import CONDITIONS, LEVELS, N_LEVELS, level_from_title, level_title
from ..studies.annotations import COLUMNS, clean_coordinates
from ..studies.competition import points_in_patient
from ..studies.study import StudySource, find_studies, load_study
from .points import LOW_CONFIDENCE, DiscPoints, complete_chain, read_points

logger = logging.getLogger(__name__)

MARKUPS = ".mrk.json"
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
_TO_LPS = {"LPS": np.ones(3), "RAS": np.array([-1.0, -1.0, 1.0])}
_TO_MM = {"mm": 1.0, "um": 1e-3}
BETWEEN_SIDES = 0.75
"""Confidence of a canal point that is told from the points of both sides: below that of most points that were seen."""


def shift_levels(discs: DiscPoints, by: int) -> DiscPoints:
    """Rename the points of a study by whole levels: with `by` 1 the point of L1/L2 becomes that of L2/L3.

    Points that get no name of a lumbar level are left out, levels that get no point are extrapolated and flagged.
    What is renamed by hand is no longer marked as low in confidence; the confidence of its place stays.
    """
    if not 0 < abs(by) < N_LEVELS - 1:
        raise DataError(f"study {discs.study_id}: points are renamed by 1 to {N_LEVELS - 2} levels, got {by}")
    kept = np.arange(N_LEVELS) - by
    known = (kept >= 0) & (kept < N_LEVELS)
    points, confidence = np.full((N_LEVELS, 3), np.nan), np.full(N_LEVELS, 0.5)
    points[known], confidence[known] = discs.points[kept[known]], discs.confidence[kept[known]]
    filled, flags = complete_chain(points)
    return DiscPoints(discs.study_id, discs.series_id, filled, confidence, flags, "corrected")


def write_markups(path: str | Path, discs: DiscPoints) -> Path:
    """Write the points of one study as a point list of 3D Slicer, labelled L1/L2 to L5/S1."""
    points = [
        {
            "id": str(i + 1),
            "label": level_title(level),
            "description": discs.flags[i],
            "position": [round(float(x), 4) for x in discs.points[i]],
            "selected": True,
            "locked": False,
            "visibility": True,
            "positionStatus": "defined",
        }
        for i, level in enumerate(LEVELS)
    ]
    markups = {
        "type": "Fiducial",
        "name": discs.study_id,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": False,
        "labelFormat": "%N-%d",
        "controlPoints": points,
    }
    path = Path(path)
    write_json(path, {"@schema": _SCHEMA, "markups": [markups]})
    return path


def read_markups(path: str | Path) -> DiscPoints:
    """Read the points of one study from a point list of 3D Slicer; levels that it lacks are imputed and flagged.

    Points are told by their labels, L1/L2 to L5/S1, others are ignored; without such labels five points are taken from
    the head down. The list's name is the study's id, or else the file's name is.
    """
    path = Path(path)
    try:
        markups = json.loads(path.read_text(encoding="utf-8"))["markups"]
        (found,) = [item for item in markups if item["type"] == "Fiducial"]
        units = found.get("coordinateUnits", "mm")
        scale = _TO_LPS[found.get("coordinateSystem", "LPS")] * _TO_MM[units[0] if isinstance(units, list) else units]
        placed = [
            (str(point.get("label", "")), np.array(point["position"], dtype=float) * scale)
            for point in found.get("controlPoints", ())
            if point.get("positionStatus", "defined") == "defined"
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a point list of 3D Slicer (.mrk.json with one Fiducial list): {error}") from error
    points = np.full((N_LEVELS, 3), np.nan)
    for label, place in placed:
        try:
            points[LEVELS.index(level_from_title(label))] = place
        except DataError:
            continue
    if np.isnan(points).all() and len(placed) == N_LEVELS:
        points = np.array(sorted((place for _, place in placed), key=lambda place: place @ INFERIOR))
    study_id = str(found.get("name") or path.name.removesuffix(MARKUPS))
    return DiscPoints.from_known(study_id, "", points, source="corrected")


def read_any_points(
    path: str | Path,
    images: str | Path | Sequence[StudySource] | None = None,
    *,
    n_jobs: int = 1,
    progress: bool = False,
) -> Mapping[str, DiscPoints]:
    """Points by study id: of a table that `lumbar localize` wrote, a point list of 3D Slicer, a folder of these, or a
    table in the competition's form, for which `images` are the studies or where they lie.

    A study of such a table that cannot be used is named in the log and left out, as are those without images.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob(f"*{MARKUPS}"))
        if not files:
            raise DataError(f"{path} holds no point list of 3D Slicer (*{MARKUPS})")
    elif path.name.endswith(MARKUPS):
        files = [path]
    elif (table := _competition_table(path)) is not None:
        if images is None:
            raise DataError(
                f"{path} holds pixels of images: say where the images are (`images`, on the command line"
                " `lumbar points import --images`)"
            )
        return _from_competition_table(table, path, images, n_jobs, progress)
    else:
        return read_points(path)
    found = [read_markups(file) for file in files]
    return {discs.study_id: discs for discs in found}


def _competition_table(path: Path) -> pd.DataFrame | None:
    """The table where it is in the competition's form; what cannot be read is left to `read_points` to name."""
    try:
        columns = set(pd.read_csv(path, nrows=0).columns)
        if "condition" not in columns or "z" in columns:
            return None
        table = pd.read_csv(path, dtype={"study_id": str, "series_id": str})
    except (OSError, ValueError):
        return None
    absent = [column for column in COLUMNS if column not in table.columns]
    if absent:
        raise DataError(f"{path}: the table of points lacks the columns {absent}, it has {list(table.columns)}")
    return table.dropna(subset=["study_id", "series_id"])


def _from_competition_table(
    table: pd.DataFrame, path: Path, images: str | Path | Sequence[StudySource], n_jobs: int, progress: bool
) -> dict[str, DiscPoints]:
    from .samples import each_study  # with torch, which the rest of this module does without

    rows_of = dict(list(table.groupby("study_id", sort=False)))
    sources = find_studies(images) if isinstance(images, str | Path) else images
    there = {source.study_id: source.absolute() for source in sources if source.study_id in rows_of}
    if len(there) < len(rows_of):
        logger.warning("%s: %s not among those at hand", path, counted(len(rows_of) - len(there)))
    tasks = [(source, rows_of[study_id]) for study_id, source in there.items()]
    return each_study(_from_rows, tasks, list(there), "disc points", n_jobs=n_jobs, progress=progress)[0]


def _from_rows(source: StudySource, rows: pd.DataFrame) -> DiscPoints:
    """The canal points of one study's rows; a level without one gets it from its recesses, else its foramina."""
    if source.in_competition:
        source = replace(source, series_ids=tuple(dict.fromkeys(rows["series_id"])))
    study = load_study(source)
    views = pd.DataFrame(
        source.listed or [(series.series_id, series.view) for series in study.series],
        columns=["series_id", "series_description"],
    ).assign(study_id=study.study_id)
    placed = points_in_patient(clean_coordinates(rows, views)[0], study)
    by_condition = np.full((len(CONDITIONS), N_LEVELS, 3), np.nan)
    for row in placed.itertuples():
        by_condition[CONDITIONS.index(row.condition), LEVELS.index(row.level)] = row.x, row.y, row.z
    points, canal = by_condition[0].copy(), by_condition[0]
    for left, right in ((3, 4), (1, 2)):
        between = (by_condition[left] + by_condition[right]) / 2
        # It lies in front of the canal's middle, by as much as on the levels of this study where both are known.
        offsets = (canal - between)[np.isfinite(canal - between).all(axis=1)]
        between = between + (np.median(offsets, axis=0) if len(offsets) else 0.0)
        points = np.where(np.isfinite(points), points, between)
    on = placed.loc[placed["condition"] == CONDITIONS[0], "series_id"]
    discs = DiscPoints.from_known(study.study_id, on.iloc[0] if len(on) else "", points, source="table")
    told = np.isnan(canal).any(axis=1) & np.isfinite(points).all(axis=1)
    flags = tuple(LOW_CONFIDENCE if it else flag for it, flag in zip(told, discs.flags, strict=True))
    return replace(discs, confidence=np.where(told, BETWEEN_SIDES, discs.confidence), flags=flags)
