"""How far found points lie from reference points, whether a spine is shifted, whether confidence is calibrated.

Errors are measured in two ways: as millimetres in the patient (`evaluate_points`), and in the pixels and slices of the
images that readers marked, in which the competition's solutions report their localizers (`evaluate_on_images`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..errors import DataError
from ..labels import CONDITIONS, LEVELS, N_LEVELS
from ..notebook_html import progress_bar
from ..parallel import JobFailure, run_jobs
from .points import LOW_CONFIDENCE, DiscPoints, chain_tangents, complete_chain, forward_directions
from .samples import single_study_folders

if TYPE_CHECKING:
    from ..studies.study import CompetitionFolder

logger = logging.getLogger(__name__)

FOUND_MM = 5.0
"""A point this near counts as found; a level's confidence is the probability of that."""
FOUND_PIXELS = 5.0
"""The same in pixels of the labelled image, as public solutions of the competition report it."""
CONFIDENCE_BINS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Finer towards 1, where most levels are."""
NOT_FOUND = "not found"
"""The flag of levels of a study on which the localizer found no chain."""
ERROR_COLUMNS = (
    *("study_id", "level", "error_mm", "along_mm", "backward_mm"),
    *("confidence", "flag", "shift", "low_confidence"),
)
IMAGE_COLUMNS = ("study_id", "level", "series_id", "instance_number", "error_pixels", "slices_apart")


@dataclass(frozen=True, eq=False)
class PointErrors:
    """Errors of one study's points; nan where the reference is missing.

    Parameters
    ----------
    distance : ndarray, shape (5,)
        mm in space.
    along : ndarray, shape (5,)
        mm along the spine's axis, positive when the found point is too low.
    backward : ndarray, shape (5,)
        mm across that axis in the sagittal plane, positive when the found point is too far back.
    shift : int
        By how many levels the whole chain is off: 1 when it sits on the discs below the right ones, -1 above.
    """

    distance: np.ndarray
    along: np.ndarray
    backward: np.ndarray
    shift: int


def point_errors(found: np.ndarray, reference: np.ndarray) -> PointErrors:
    """Compare found points (5, 3) with reference points (5, 3), nan rows where there is none; LPS mm.

    The axis is the reference chain's own direction at each level, so a reference that is not the canal point but,
    for example, the disc's posterior margin can be used: read `along` then, or `backward` less its mean, and not
    `distance`.
    """
    found, reference = np.asarray(found, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if found.shape != (N_LEVELS, 3) or reference.shape != (N_LEVELS, 3):
        raise DataError(f"both must have shape ({N_LEVELS}, 3), got {found.shape} and {reference.shape}")
    known = np.isfinite(reference).all(axis=1)
    difference = np.where(known[:, None], found - reference, np.nan)
    # One reference point has no direction of its own; that of the found chain is used.
    chain = complete_chain(reference)[0] if known.sum() >= 2 else found
    tangents = chain_tangents(chain)
    along, backward = ((difference * axis).sum(axis=1) for axis in (tangents, -forward_directions(tangents)))
    step = float(np.median(np.linalg.norm(np.diff(chain, axis=0), axis=1)))
    shift = int(np.rint(np.median(along[known]) / step)) if known.any() else 0
    return PointErrors(np.linalg.norm(difference, axis=1), along, backward, shift)


def evaluate_points(found: Mapping[str, DiscPoints], reference: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Errors of many studies, one row a study and level that has a reference.

    Columns: study_id, level, error_mm, along_mm, backward_mm, confidence, flag, shift, low_confidence (see
    `level_labelling_uncertain`). A study of `reference` that is not in `found` (the localizer raised on it) has rows
    with nan errors and the flag "not found", which count as wrong in `summary`.
    """
    nan = np.full(N_LEVELS, np.nan)
    tables = []
    for study_id, points in reference.items():
        discs = found.get(study_id)
        errors = point_errors(discs.points, points) if discs is not None else PointErrors(nan, nan, nan, 0)
        table = pd.DataFrame(
            {
                "study_id": study_id,
                "level": LEVELS,
                "error_mm": errors.distance,
                "along_mm": errors.along,
                "backward_mm": errors.backward,
                "confidence": discs.confidence if discs is not None else 0.0,
                "flag": discs.flags if discs is not None else NOT_FOUND,
                "shift": errors.shift,
                "low_confidence": discs is not None and level_labelling_uncertain(discs),
            }
        )
        tables.append(table[np.isfinite(points).all(axis=1)])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(ERROR_COLUMNS))


def level_labelling_uncertain(discs: DiscPoints) -> bool:
    """Whether all levels have low confidence: the points lie on discs, perhaps a level too high or low."""
    return all(LOW_CONFIDENCE in flag for flag in discs.flags)


def low_confidence_studies(found: Mapping[str, DiscPoints]) -> list[str]:
    """Ids of the studies whose level labelling has low confidence, in the order given: somebody should look at them."""
    return [study_id for study_id, discs in found.items() if level_labelling_uncertain(discs)]


def summary(errors: pd.DataFrame) -> dict[str, float]:
    """The numbers that are reported: medians in mm, fractions of levels, counts of studies.

    `studies_shifted_unflagged` is the number that must be zero: whole spines off by a level without low confidence.
    "centred": less the mean offset, for a reference that is not the canal point but keeps its distance from it.
    """
    distance, along, backward = (errors[name].astype(float) for name in ("error_mm", "along_mm", "backward_mm"))
    shifted, marked, missed = errors["shift"] != 0, errors["low_confidence"].astype(bool), errors["flag"] == NOT_FOUND
    along_centred, backward_centred = along - along.mean(), backward - backward.mean()

    def studies(rows: pd.Series) -> int:
        return int(errors.loc[rows, "study_id"].nunique())

    return {
        "studies": int(errors["study_id"].nunique()),
        "levels": len(errors),
        "median_mm": float(distance.median()),
        "within_2mm": float((distance <= 2).mean()),
        "within_5mm": float((distance <= FOUND_MM).mean()),
        "median_along_mm": float(along.abs().median()),
        "median_along_centred_mm": float(along_centred.abs().median()),
        "median_in_plane_centred_mm": float(np.hypot(along_centred, backward_centred).median()),
        "within_10mm_along": float((along.abs() <= 10).mean()),
        "studies_shifted": studies(shifted),
        "studies_shifted_unflagged": studies(shifted & ~marked),
        "studies_low_confidence": studies(marked),
        "studies_not_found": studies(missed),
        "levels_flagged": int(((errors["flag"] != "") & ~missed).sum()),
    }


def reliability(errors: pd.DataFrame) -> pd.DataFrame:
    """How often levels of a confidence are right: per bin of it, the share of levels within `FOUND_MM`.

    Parameters
    ----------
    errors : DataFrame
        From `evaluate_points`.

    Returns
    -------
    DataFrame
        bin ("0.50-0.70", of `CONFIDENCE_BINS`, the upper edge belonging to it), levels, mean_confidence, share_within;
        bins without a level are left out. Calibrated confidence has the same mean and share in every row.
    """
    confidence = errors["confidence"].astype(float)
    names = [f"{low:.2f}-{high:.2f}" for low, high in pairwise(CONFIDENCE_BINS)]
    bins = pd.cut(confidence, CONFIDENCE_BINS, labels=names, include_lowest=True).astype(str)
    within = errors["error_mm"].astype(float) <= FOUND_MM  # nan, which is "not found", is not within
    table = pd.DataFrame({"bin": bins, "levels": 1, "mean_confidence": confidence, "share_within": within})
    means = {"levels": "sum", "mean_confidence": "mean", "share_within": "mean"}
    return table.groupby("bin", as_index=False).agg(means)


def calibration_error(errors: pd.DataFrame) -> float:
    """Expected calibration error: mean gap between confidence and share within, bins weighted by their levels.

    0 is perfect. Definition of Naeini et al. 2015 (AAAI, "Obtaining well calibrated probabilities using Bayesian
    binning") with fixed bins. nan without any level.
    """
    table = reliability(errors)
    if table.empty:
        return float("nan")
    gap = (table["mean_confidence"] - table["share_within"]).abs()
    return float(np.average(gap, weights=table["levels"]))


def evaluate_on_images(
    folder: CompetitionFolder,
    study_ids: Sequence[str],
    found: Mapping[str, DiscPoints],
    *,
    n_jobs: int = 2,
    progress: bool = True,
) -> pd.DataFrame:
    """Compare found points with the canal points of the cleaned coordinate table on the very images that were marked.

    The found point is projected onto the labelled image along the slice's normal, so that error in the plane and slice
    are measured apart, as the competition's solutions do. The table's annotation errors are corrected or left out
    first (`CompetitionFolder.clean_coordinates`): points in an image's corner and on the wrong series do not count,
    nor does a level without a point.

    Returns
    -------
    DataFrame
        `IMAGE_COLUMNS`, one row a labelled level. error_pixels: distance in the labelled image's own pixels;
        slices_apart: places in the stack from the labelled slice to the one nearest to the found point, signed. Both
        nan where a study was not found, which counts as wrong in `image_summary`. Points whose image cannot be read are
        logged and left out.
    """
    study_ids = [str(study_id) for study_id in study_ids]
    tasks = (
        (part, s, found.get(s)) for part, s in zip(single_study_folders(folder, study_ids), study_ids, strict=True)
    )
    jobs = run_jobs(_on_images, tasks, n_jobs=n_jobs, ordered=True)
    compared: list[tuple] = []
    for index, rows in progress_bar(
        jobs, total=len(study_ids), desc="labelled images", unit="study", disable=not progress
    ):
        if isinstance(rows, JobFailure):  # one odd study must not cost the comparison of all the others
            logger.warning("study %s: its labelled images are left out: %s", study_ids[index], rows.reason)
        else:
            compared += rows
    return pd.DataFrame(compared, columns=list(IMAGE_COLUMNS))


def _on_images(folder: CompetitionFolder, study_id: str, discs: DiscPoints | None) -> list[tuple]:
    labelled = folder.clean_coordinates()[0]
    labelled = labelled[labelled["condition"] == CONDITIONS[0]]
    if labelled.empty:
        return []
    study = folder.load_study(study_id, part="train", series_ids=list(labelled["series_id"].unique()))
    rows = []
    for row in labelled.itertuples():
        series = study.series_by_id(row.series_id)
        place = series.slice_of(row.instance_number) if series is not None else None
        if place is None:
            image = f"study {study_id}, series {row.series_id}: instance {row.instance_number}"
            logger.warning("%s has a point but cannot be read; it is left out", image)
            continue
        error, apart = np.nan, np.nan
        if discs is not None:
            point = discs.points[LEVELS.index(row.level)]
            geometry = series.stacks[place[0]].geometry
            pixel, _ = geometry[place[1]].world_to_pixel(point)
            error = float(np.hypot(*(pixel - [row.x, row.y])))
            apart = float(geometry.nearest_slice(point) - place[1])
        rows.append((study_id, row.level, row.series_id, row.instance_number, error, apart))
    return rows


def image_summary(comparison: pd.DataFrame) -> pd.DataFrame:
    """What the competition's solutions report of their localizers, by level and over all of them.

    Columns: points, median_pixels, within_5_pixels, exact_slice, within_one_slice (shares of the points; a level that
    was not found counts as wrong). Rows: `labels.LEVELS` that have points, and "all".
    """
    table = pd.DataFrame(
        {
            "level": comparison["level"],
            "points": 1,
            "median_pixels": comparison["error_pixels"].astype(float),
            "within_5_pixels": comparison["error_pixels"] <= FOUND_PIXELS,
            "exact_slice": comparison["slices_apart"] == 0,
            "within_one_slice": comparison["slices_apart"].abs() <= 1,
        }
    )
    functions = {name: "mean" for name in table.columns[1:]} | {"points": "sum", "median_pixels": "median"}
    overall = table.agg(functions).to_frame("all").T
    by_level = table.groupby("level").agg(functions)
    return pd.concat([by_level, overall]).astype({"points": int}).rename_axis("level")


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
    table[study_column] = table[study_column].astype(str)
    reference = {}
    for study_id, rows in table.drop_duplicates([study_column, "level"], keep="last").groupby(study_column, sort=False):
        reference[study_id] = rows.set_index("level")[names].reindex(LEVELS).to_numpy(dtype=np.float64)
    return reference
