"""Canal points to and from other programs, and the correction of their names.

3D Slicer keeps points as markups (`.mrk.json`): positions in LPS mm, as ours are, one point list a file. Its schema is
Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json in Slicer's sources.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..files import write_json
from ..geometry import INFERIOR
from ..labels import LEVELS, N_LEVELS, level_from_title, level_title
from .points import DiscPoints, complete_chain, read_points

MARKUPS = ".mrk.json"
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
_TO_LPS = {"LPS": np.ones(3), "RAS": np.array([-1.0, -1.0, 1.0])}
_TO_MM = {"mm": 1.0, "um": 1e-3}


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


def read_any_points(path: str | Path) -> Mapping[str, DiscPoints]:
    """Points by study id: of a table that `lumbar localize` wrote, a point list of 3D Slicer, or a folder of these."""
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob(f"*{MARKUPS}"))
        if not files:
            raise DataError(f"{path} holds no point list of 3D Slicer (*{MARKUPS})")
    elif path.name.endswith(MARKUPS):
        files = [path]
    else:
        return read_points(path)
    found = [read_markups(file) for file in files]
    return {discs.study_id: discs for discs in found}
