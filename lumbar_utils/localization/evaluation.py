"""How far found points lie from reference points, whether a spine is off by a level, what confidence is worth.

Two rulers: millimetres in the patient (`evaluate_points`), and the pixels and slices of the images that readers marked,
in which the competition's solutions report their localizers (`evaluate_on_images`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from ..errors import DataError
from ..geometry import POSTERIOR
from ..labels import CONDITIONS, LEVELS, N_LEVELS
from .points import LOW_CONFIDENCE, DiscPoints, chain_tangents, complete_chain
from .samples import STUDIES_A_JOB

if TYPE_CHECKING:
    from ..studies.study import CompetitionFolder

logger = logging.getLogger(__name__)

FOUND_MM = 5.0
"""A point this near counts as found, and this is what a level's confidence is the probability of."""
FOUND_PIXELS = 5.0
"""The same in pixels of the labelled image, as public solutions of the competition report it."""
CONFIDENCE_BINS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Finer towards 1, where most levels are."""
ERROR_COLUMNS = (
    "study_id",
    "level",
    "error_mm",
    "along_mm",
    "backward_mm",
    "confidence",
    "flag",
    "shift",
    "low_confidence",
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
    # One reference point has no direction of its own; the found chain lends it.
    chain = complete_chain(reference)[0] if known.sum() >= 2 else found
    tangents = chain_tangents(chain)
    back = POSTERIOR - (tangents @ POSTERIOR)[:, None] * tangents
    back /= np.linalg.norm(back, axis=1, keepdims=True)
    along, backward = (np.einsum("ij,ij->i", difference, axis) for axis in (tangents, back))
    step = float(np.median(np.linalg.norm(np.diff(chain, axis=0), axis=1)))
    shift = int(np.rint(np.median(along[known]) / step)) if known.any() else 0
    return PointErrors(np.linalg.norm(difference, axis=1), along, backward, shift)


def evaluate_points(found: Mapping[str, DiscPoints], reference: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Errors of many studies, one row a study and level that has a reference.

    Columns: study_id, level, error_mm, along_mm, backward_mm, confidence, flag, shift, doubtful (see
    `level_labelling_uncertain`). A study of `reference` that is not in `found` (the localizer raised on it) has rows
    with nan errors, which count as wrong in `summary`.
    """
    rows = []
    for study_id, points in reference.items():
        known = np.isfinite(points).all(axis=1)
        result = found.get(study_id)
        errors = point_errors(result.points, points) if result is not None and known.any() else None
        for level in np.flatnonzero(known):
            rows.append(
                {
                    "study_id": study_id,
                    "level": LEVELS[level],
                    "error_mm": errors.distance[level] if errors else np.nan,
                    "along_mm": errors.along[level] if errors else np.nan,
                    "backward_mm": errors.backward[level] if errors else np.nan,
                    "confidence": result.confidence[level] if result is not None else 0.0,
                    "flag": result.flags[level] if result is not None else "not found",
                    "shift": errors.shift if errors else 0,
                    "low_confidence": result is not None and level_labelling_uncertain(result),
                }
            )
    return pd.DataFrame(rows, columns=list(ERROR_COLUMNS))


def level_labelling_uncertain(discs: DiscPoints) -> bool:
    """Whether the naming of the whole chain is doubtful: the points lie on discs, perhaps a level too high or low."""
    return all(LOW_CONFIDENCE in flag for flag in discs.flags)


def low_confidence_studies(found: Mapping[str, DiscPoints]) -> list[str]:
    """Ids of the studies whose naming is doubtful, in the order given: the ones that somebody should look at."""
    return [study_id for study_id, discs in found.items() if level_labelling_uncertain(discs)]


def summary(errors: pd.DataFrame) -> dict[str, float]:
    """The numbers that are reported: medians in mm, fractions of levels, counts of studies.

    `studies_shifted_unflagged` is the number that must be zero: whole spines off by a level without saying so.
    "centred": less the mean offset, for a reference that is not the canal point but keeps its distance from it.
    """
    distance, along, backward = (errors[c].to_numpy(dtype=float) for c in ("error_mm", "along_mm", "backward_mm"))
    shifted, doubtful = errors["shift"] != 0, errors["low_confidence"].astype(bool)
    along_centred, backward_centred = _centred(along), _centred(backward)
    return {
        "studies": int(errors["study_id"].nunique()),
        "levels": len(errors),
        "median_mm": _median(distance),
        "within_2mm": _share(distance <= 2),
        "within_5mm": _share(distance <= FOUND_MM),
        "median_along_mm": _median(np.abs(along)),
        "median_along_centred_mm": _median(np.abs(along_centred)),
        "median_in_plane_centred_mm": _median(np.hypot(along_centred, backward_centred)),
        "within_10mm_along": _share(np.abs(along) <= 10),
        "studies_shifted": int(errors.loc[shifted, "study_id"].nunique()),
        "studies_shifted_unflagged": int(errors.loc[shifted & ~doubtful, "study_id"].nunique()),
        "studies_low_confidence": int(errors.loc[doubtful, "study_id"].nunique()),
        "studies_not_found": int(errors.loc[errors["flag"] == "not found", "study_id"].nunique()),
        "levels_flagged": int(((errors["flag"] != "") & (errors["flag"] != "not found")).sum()),
    }


def reliability(
    errors: pd.DataFrame, *, within_mm: float = FOUND_MM, bins: Sequence[float] = CONFIDENCE_BINS
) -> pd.DataFrame:
    """What a confidence is worth: per bin of it, the share of levels that lie within `within_mm`.

    Parameters
    ----------
    errors : DataFrame
        From `evaluate_points`.
    bins : sequence of float
        Rising edges from 0 to 1; a confidence on an edge belongs to the bin below it.

    Returns
    -------
    DataFrame
        bin ("0.50-0.70"), levels, mean_confidence, share_within; bins without a level are left out. Calibrated
        confidence has the same mean and share in every row.
    """
    edges = np.asarray(bins, dtype=float)
    if len(edges) < 2 or edges[0] > 0 or edges[-1] < 1 or np.any(np.diff(edges) <= 0):
        raise DataError(f"bins must rise from 0 to 1, got {list(bins)}")
    confidence = errors["confidence"].to_numpy(dtype=float)
    within = errors["error_mm"].to_numpy(dtype=float) <= within_mm  # nan, which is "not found", is not within
    number = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, len(edges) - 2)
    rows = [
        (f"{edges[i]:.2f}-{edges[i + 1]:.2f}", int(here.sum()), float(confidence[here].mean()), _share(within[here]))
        for i, here in ((i, number == i) for i in range(len(edges) - 1))
        if here.any()
    ]
    return pd.DataFrame(rows, columns=["bin", "levels", "mean_confidence", "share_within"])


def calibration_error(
    errors: pd.DataFrame, *, within_mm: float = FOUND_MM, bins: Sequence[float] = CONFIDENCE_BINS
) -> float:
    """Expected calibration error: mean gap between confidence and share within, bins weighted by their levels.

    0 is perfect. Definition of Naeini et al. 2015 (AAAI, "Obtaining well calibrated probabilities using Bayesian
    binning") with fixed bins. nan without any level.
    """
    table = reliability(errors, within_mm=within_mm, bins=bins)
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

    The found point is projected onto the labelled image along the slice's normal, so that in-plane error and slice
    are judged apart, as the competition's solutions do. The table is cleaned of its traps first
    (`CompetitionFolder.clean_coordinates`): corner points and points on the wrong series are not held against anybody,
    and a level without a point is not counted.

    Returns
    -------
    DataFrame
        `IMAGE_COLUMNS`, one row a labelled level. error_pixels: distance in the labelled image's own pixels;
        slices_apart: places in the stack from the labelled slice to the one nearest to the found point, signed. Both
        nan where a study was not found, which counts as wrong in `image_summary`. Points whose image cannot be read are
        logged and left out.
    """
    study_ids = [str(study_id) for study_id in study_ids]
    rows = folder.clean_coordinates()[0]
    canal = rows[(rows["condition"] == CONDITIONS[0]) & rows["study_id"].isin(study_ids)]
    labelled = {study_id: table for study_id, table in canal.groupby("study_id", sort=False)}
    wanted = [study_id for study_id in study_ids if study_id in labelled]
    # The folder's tables travel with every job, so a job is a handful of studies.
    parts = [wanted[i : i + STUDIES_A_JOB] for i in range(0, len(wanted), STUDIES_A_JOB)]
    jobs = Parallel(n_jobs=n_jobs, return_as="generator")(
        delayed(_part_on_images)(folder, [(labelled[study_id], found.get(study_id)) for study_id in part])
        for part in parts
    )
    compared: list[tuple] = []
    with tqdm(total=len(wanted), desc="labelled images", unit="study", disable=not progress) as bar:
        for part, found_rows in zip(parts, jobs, strict=True):
            compared += found_rows
            bar.update(len(part))
    return pd.DataFrame(compared, columns=list(IMAGE_COLUMNS))


def _part_on_images(
    folder: CompetitionFolder, studies: Sequence[tuple[pd.DataFrame, DiscPoints | None]]
) -> list[tuple]:
    return [row for labelled, discs in studies for row in _on_images(folder, labelled, discs)]


def _on_images(folder: CompetitionFolder, labelled: pd.DataFrame, discs: DiscPoints | None) -> list[tuple]:
    study_id = labelled["study_id"].iloc[0]
    try:
        study = folder.load_study(study_id, part="train", series_ids=list(labelled["series_id"].unique()))
    except Exception as error:  # one odd study must not cost the comparison of all the others
        logger.warning("study %s: its labelled images are left out: %s", study_id, error or type(error).__name__)
        return []
    rows = []
    for row in labelled.itertuples():
        series = study.series_by_id(row.series_id)
        place = series.slice_of(row.instance_number) if series is not None else None
        if place is None:
            logger.warning(
                "study %s, series %s: instance %s has a point but cannot be read; it is left out",
                study_id,
                row.series_id,
                row.instance_number,
            )
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
    rows = {level: comparison[comparison["level"] == level] for level in LEVELS} | {"all": comparison}
    table = {}
    for name, part in rows.items():
        if part.empty and name != "all":
            continue
        pixels, apart = (part[column].to_numpy(dtype=float) for column in ("error_pixels", "slices_apart"))
        table[name] = {
            "points": len(part),
            "median_pixels": _median(pixels),
            "within_5_pixels": _share(pixels <= FOUND_PIXELS),
            "exact_slice": _share(apart == 0),
            "within_one_slice": _share(np.abs(apart) <= 1),
        }
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("level")


def _centred(values: np.ndarray) -> np.ndarray:
    """Values less the mean of the finite ones."""
    known = values[np.isfinite(values)]
    return values - known.mean() if known.size else values


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
