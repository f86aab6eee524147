"""How far found points lie from reference points, and whether a whole spine is off by a level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import DataError
from ..labels import LEVELS, N_LEVELS
from .points import DiscPoints, chain_tangents, complete_chain

LARGEST_SHIFT = 2


@dataclass(frozen=True, eq=False)
class PointErrors:
    """Errors of one study's points; nan where the reference is missing.

    Parameters
    ----------
    distance : ndarray, shape (5,)
        mm in space.
    along : ndarray, shape (5,)
        mm along the spine's axis, positive when the found point is too low.
    shift : int
        By how many levels the whole chain is off: 1 when it sits on the discs below the right ones, -1 above.
    """

    distance: np.ndarray
    along: np.ndarray
    shift: int


def point_errors(found: np.ndarray, reference: np.ndarray) -> PointErrors:
    """Compare found points (5, 3) with reference points (5, 3), nan rows where there is none; LPS mm.

    The axis is the reference chain's own direction at each level, so a reference that is not the canal point but,
    for example, the disc's posterior margin can be used: read `along` then, and not `distance`.
    """
    found, reference = np.asarray(found, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if found.shape != (N_LEVELS, 3) or reference.shape != (N_LEVELS, 3):
        raise DataError(f"both must have shape ({N_LEVELS}, 3), got {found.shape} and {reference.shape}")
    chain, _ = complete_chain(reference)
    known = np.isfinite(reference).all(axis=1)
    difference = np.where(known[:, None], found - reference, np.nan)
    along = np.einsum("ij,ij->i", difference, chain_tangents(chain))
    return PointErrors(np.linalg.norm(difference, axis=1), along, level_shift(found, reference))


def level_shift(found: np.ndarray, reference: np.ndarray) -> int:
    """The shift k for which found[l] lies nearest to reference[l + k] in the median over levels; 0 when right."""
    costs = {}
    for shift in range(-LARGEST_SHIFT, LARGEST_SHIFT + 1):
        levels = np.arange(max(0, -shift), N_LEVELS - max(0, shift))
        distance = np.linalg.norm(found[levels] - reference[levels + shift], axis=1)
        distance = distance[np.isfinite(distance)]
        if len(distance) >= 2:
            costs[shift] = float(np.median(distance))
    return min(costs, key=lambda k: (costs[k], abs(k))) if costs else 0


def evaluate_points(found: Mapping[str, DiscPoints], reference: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Errors of many studies, one row a study and level that has a reference.

    Columns: study_id, level, error_mm, along_mm, confidence, flag, shift. A study of `reference` that is not in
    `found` (the localizer raised on it) has rows with nan errors, which count as wrong in `summary`.
    """
    rows = []
    for study_id, points in reference.items():
        known = np.isfinite(points).all(axis=1)
        result = found.get(study_id)
        errors = point_errors(result.points, points) if result is not None and known.sum() >= 2 else None
        for level in np.flatnonzero(known):
            rows.append(
                {
                    "study_id": study_id,
                    "level": LEVELS[level],
                    "error_mm": errors.distance[level] if errors else np.nan,
                    "along_mm": errors.along[level] if errors else np.nan,
                    "confidence": result.confidence[level] if result is not None else 0.0,
                    "flag": result.flags[level] if result is not None else "not found",
                    "shift": errors.shift if errors else 0,
                }
            )
    columns = ["study_id", "level", "error_mm", "along_mm", "confidence", "flag", "shift"]
    return pd.DataFrame(rows, columns=columns)


def summary(errors: pd.DataFrame) -> dict[str, float]:
    """The numbers that are reported: medians in mm, fractions of levels, counts of studies."""
    distance, along = (errors[column].to_numpy(dtype=float) for column in ("error_mm", "along_mm"))
    shifted = errors.loc[errors["shift"] != 0, "study_id"].nunique()
    centred = np.abs(along - np.mean(along[np.isfinite(along)])) if np.isfinite(along).any() else along
    return {
        "studies": int(errors["study_id"].nunique()),
        "levels": len(errors),
        "median_mm": _median(distance),
        "within_2mm": _share(distance <= 2),
        "within_5mm": _share(distance <= 5),
        "median_along_mm": _median(np.abs(along)),
        "median_along_centred_mm": _median(centred),
        "within_10mm_along": _share(np.abs(along) <= 10),
        "studies_shifted": int(shifted),
        "studies_not_found": int(errors.loc[errors["flag"] == "not found", "study_id"].nunique()),
        "levels_flagged": int(((errors["flag"] != "") & (errors["flag"] != "not found")).sum()),
    }


def _median(values: np.ndarray) -> float:
    """Median of the finite values, nan without any (and without numpy's warning)."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


def _share(found: np.ndarray) -> float:
    return float(np.mean(found)) if found.size else float("nan")


def read_reference(path: str | Path, *, point: str = "canal", study_column: str = "study_id") -> dict[str, np.ndarray]:
    """Reference points of many studies from a table with one row a study and level.

    Parameters
    ----------
    path : path-like
        A CSV with `study_column`, `level` and `<point>_x`, `<point>_y`, `<point>_z` in LPS mm, for example a
        synthetic cohort's `truth/discs.csv`.

    Returns
    -------
    dict study id -> ndarray (5, 3), nan where a level has no row
    """
    table = pd.read_csv(path, dtype={study_column: str})
    names = [f"{point}_{axis}" for axis in "xyz"]
    absent = [name for name in (study_column, "level", *names) if name not in table.columns]
    if absent:
        raise DataError(f"{path}: lacks the columns {absent}, it has {list(table.columns)}")
    reference: dict[str, np.ndarray] = {}
    for study_id, rows in table.groupby(study_column, sort=False):
        points = np.full((N_LEVELS, 3), np.nan)
        for level, xyz in zip(rows["level"], rows[names].to_numpy(), strict=True):
            if level in LEVELS:
                points[LEVELS.index(level)] = xyz
        reference[str(study_id)] = points
    return reference
