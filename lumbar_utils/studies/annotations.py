"""The competition's table of points, `train_label_coordinates.csv`, and the annotation errors in it.

The real table holds points in image corners, canal points on the wrong series, sides that have changed places
and levels out of order. Each of them costs a localizer more than a missing point does, so what is surely wrong is
dropped, what can be corrected without a guess is corrected, and everything is reported with its reason.

Only tables are needed here. Some faults cannot be seen without pixels and stay: all levels shifted by one, a study
whose sides are all exchanged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations, pairwise

import numpy as np
import pandas as pd

from ..errors import DataError
from ..labels import (
    AXIAL_T2,
    CONDITIONS,
    LEVELS,
    MISSING,
    SAGITTAL_T1,
    SAGITTAL_T2,
    VIEWS,
    condition_from_title,
    encode_severities,
    level_from_title,
)

CORNER = 16.0
"""Pixels. Points with both coordinates below were clicked by mistake; a spine never reaches the image corner."""
MAX_MATRIX = 1024
"""Pixels, the largest matrix of the real set; points beyond lie outside whatever the image, see `image_sizes`."""
SLICES_APART = 3
"""Left and right subarticular points of a level lie at most one axial slice apart in 96.5 % of the real studies; their
x coordinates are compared up to this distance."""
MAJORITY = 3
"""A level's foraminal sides are exchanged only when this many times more levels of the series say otherwise."""

ACTIONS = {
    **dict.fromkeys(("unknown name", "not a number", "corner point", "outside image", "image not on disk"), "dropped"),
    **dict.fromkeys(("wrong view", "duplicate point", "levels out of order"), "dropped"),
    "sides exchanged": "corrected",
    **dict.fromkeys(("only other view", "series not listed", "point without label"), "kept"),
    "label without point": "none",
}
"""Every reason of a report and what is done about it."""

POINT_VIEWS = dict(zip(CONDITIONS, (SAGITTAL_T2, SAGITTAL_T1, SAGITTAL_T1, AXIAL_T2, AXIAL_T2), strict=True))
"""The view on which the competition marked each condition."""

COLUMNS = ("study_id", "series_id", "instance_number", "condition", "level", "x", "y")
_, _LEFT_FORAMEN, _RIGHT_FORAMEN, _LEFT_RECESS, _RIGHT_RECESS = CONDITIONS


def clean_coordinates(
    coordinates: pd.DataFrame,
    series_table: pd.DataFrame,
    labels: pd.DataFrame | None = None,
    *,
    image_sizes: Mapping[tuple[str, str, int], tuple[int, int]] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Find the annotation errors in the table of points; raises `DataError` when it lacks columns.

    Tables are in the form of the competition's, with ids as str; `labels` tell labels without a point and points
    without a label. `image_sizes` gives (rows, columns) by (study_id, series_id, instance_number), (0, 0) for an image
    that is not there; without it only points outside of any possible image are found.

    Returns the points that are left, with condition and level as in `labels` (`"l1_l2"`, not `"L1/L2"`), and a report:
    `COLUMNS`, reason and action as in `ACTIONS`, and detail. A dropped point is named once, with the first reason.
    """
    absent = [column for column in COLUMNS if column not in coordinates.columns]
    if absent:
        raise DataError(f"the table of points lacks the columns {absent}")
    views = {
        (row.study_id, row.series_id): row.series_description
        for row in series_table[["study_id", "series_id", "series_description"]].itertuples(index=False)
    }
    views_of_study = {(study_id, view) for (study_id, _), view in views.items()}
    report: list[tuple] = []
    points: dict[int, dict] = {}
    raw_targets: set[tuple] = set()
    for index, row in enumerate(_rows(coordinates)):
        raw_targets.add((row["study_id"], row["condition"], row["level"]))
        found = _fault_of_point(row, views, views_of_study, image_sizes)
        if found:
            report.append(_entry(row, *found))
        if not found or ACTIONS[found[0]] == "kept":
            points[index] = row
    _drop(points, report, "duplicate point", _duplicates(points))
    _exchange_sides(points, report)
    _drop(points, report, "levels out of order", _out_of_order(points))
    if labels is not None:
        report += _compare_with_labels(labels, raw_targets, points)
    cleaned = pd.DataFrame(list(points.values()), columns=list(COLUMNS))
    cleaned = cleaned.astype({"instance_number": "int64", "x": "float64", "y": "float64"})
    return cleaned, pd.DataFrame(report, columns=[*COLUMNS, "reason", "action", "detail"])


def _rows(coordinates: pd.DataFrame) -> Iterable[dict]:
    """Rows as dicts, names in the vocabulary of `labels` where they are known, numbers as float (nan if broken)."""
    frame = coordinates[list(COLUMNS)].copy()
    for column in ("instance_number", "x", "y"):
        frame[column] = pd.to_numeric(frame[column], errors="coerce")
    for column, convert in (("condition", condition_from_title), ("level", level_from_title)):
        frame[column] = frame[column].map({name: _known(convert, name) for name in frame[column].unique()})
    return frame.to_dict("records")


def _known(convert, name) -> str:
    try:
        return convert(name)
    except DataError:
        return str(name)


def _fault_of_point(
    row: dict, views: Mapping, views_of_study: set[tuple[str, str]], image_sizes: Mapping | None
) -> tuple[str, str] | None:
    """(reason, detail) of the first fault of one point by itself."""
    x, y, condition = row["x"], row["y"], row["condition"]
    if condition not in CONDITIONS or row["level"] not in LEVELS:
        return "unknown name", f"{condition!r} at {row['level']!r}"
    if not (x - x == 0 and y - y == 0 and float(row["instance_number"]).is_integer()):
        return "not a number", ""
    if 0 <= x < CORNER and 0 <= y < CORNER:
        return "corner point", ""
    rows, columns = MAX_MATRIX, MAX_MATRIX
    if image_sizes is not None:
        image = row["study_id"], row["series_id"], int(row["instance_number"])
        rows, columns = image_sizes.get(image, (0, 0))
        if not rows:
            return "image not on disk", f"instance {image[2]}"
    if not (-0.5 <= x <= columns and -0.5 <= y <= rows):
        size = f" of {columns} x {rows}" if image_sizes is not None else ""
        return "outside image", f"({x:.0f}, {y:.0f}){size}"
    view = views.get((row["study_id"], row["series_id"]))
    if view is None:
        return "series not listed", ""
    wanted = POINT_VIEWS[condition]
    if view in VIEWS and view != wanted:
        if (row["study_id"], wanted) in views_of_study:
            return "wrong view", f"on {view}, expected {wanted}"
        return "only other view", f"on {view}, the study has no {wanted}"
    return None


def _duplicates(points: Mapping[int, dict]) -> dict[int, str]:
    """Second and later points of one target."""
    keys = pd.Series(
        {index: (row["study_id"], row["condition"], row["level"]) for index, row in points.items()}, dtype=object
    )
    return dict.fromkeys(keys.index[keys.duplicated()], "the first one is kept")


def _exchange_sides(points: dict[int, dict], report: list[tuple]) -> None:
    """Give a left and a right point of one level each other's side where the images say so.

    Axial images show the patient's left at larger x. In a sagittal series all left foramina lie towards the same
    end of the instance numbers, which end it is differs by series.
    """
    by_target = {(row["study_id"], row["condition"], row["level"]): row for row in points.values()}
    foramina: dict[tuple, list[tuple[dict, dict]]] = defaultdict(list)
    wrong: list[tuple[dict, dict]] = []
    other_side = {_LEFT_FORAMEN: _RIGHT_FORAMEN, _LEFT_RECESS: _RIGHT_RECESS}
    for (study_id, condition, level), left in by_target.items():
        right = by_target.get((study_id, other_side.get(condition), level))
        if right is None or right["series_id"] != left["series_id"]:
            continue
        if condition == _LEFT_FORAMEN:
            foramina[study_id, left["series_id"]].append((left, right))
        elif abs(left["instance_number"] - right["instance_number"]) <= SLICES_APART and left["x"] < right["x"]:
            wrong.append((left, right))
    for pairs in foramina.values():
        rising = [pair for pair in pairs if pair[0]["instance_number"] > pair[1]["instance_number"]]
        falling = [pair for pair in pairs if pair[0]["instance_number"] < pair[1]["instance_number"]]
        few, many = sorted((rising, falling), key=len)
        if len(many) >= MAJORITY * len(few):
            wrong += few
    for left, right in wrong:
        for row in (left, right):
            report.append(_entry(row, "sides exchanged", "side of the point set to the other one"))
        left["condition"], right["condition"] = right["condition"], left["condition"]


def _out_of_order(points: Mapping[int, dict]) -> dict[int, str]:
    """Points of sagittal series that break the order of the levels from head to foot.

    A point stays when it is in every longest subset that is in order: of two levels that have changed places both
    go, because nothing tells which is right.
    """
    chains: dict[tuple, dict[int, int]] = defaultdict(dict)
    for index, row in points.items():
        if POINT_VIEWS[row["condition"]] != AXIAL_T2:
            chains[row["study_id"], row["series_id"], row["condition"]][LEVELS.index(row["level"])] = index
    wrong = {}
    for chain in chains.values():
        indices = [chain[level] for level in sorted(chain)]
        heights = [points[index]["y"] for index in indices]
        for place in set(range(len(heights))) - _always_in_order(heights):
            wrong[indices[place]] = f"y {', '.join(f'{y:.0f}' for y in heights)} from the top level down"
    return wrong


def _always_in_order(heights: list[float]) -> set[int]:
    """Places that are in every longest rising (or, in an image upside down, falling) subsequence."""
    for size in range(len(heights), 0, -1):
        for sign in (1, -1):
            kept = [
                places
                for places in combinations(range(len(heights)), size)
                if all(sign * heights[a] < sign * heights[b] for a, b in pairwise(places))
            ]
            if kept:
                return set.intersection(*map(set, kept))
    return set()


def _compare_with_labels(labels: pd.DataFrame, raw_targets: set[tuple], points: Mapping[int, dict]) -> list[tuple]:
    targets = [(condition, level) for condition in CONDITIONS for level in LEVELS]
    studies = labels["study_id"].tolist()
    graded = [(studies[row], *targets[column]) for row, column in np.argwhere(encode_severities(labels) != MISSING)]
    absent = [
        dict(zip(("study_id", "condition", "level"), key, strict=True)) for key in graded if key not in raw_targets
    ]
    entries = [_entry(dict.fromkeys(COLUMNS) | key, "label without point", "") for key in absent]
    known = set(graded)
    extra = [row for row in points.values() if (row["study_id"], row["condition"], row["level"]) not in known]
    return entries + [_entry(row, "point without label", "") for row in extra]


def _drop(points: dict[int, dict], report: list[tuple], reason: str, wrong: Mapping[int, str]) -> None:
    for index, detail in wrong.items():
        report.append(_entry(points.pop(index), reason, detail))


def _entry(row: Mapping, reason: str, detail: str) -> tuple:
    return (*(row[column] for column in COLUMNS), reason, ACTIONS[reason], detail)
