"""How far found points lie from reference points, whether a spine is shifted, whether confidence is calibrated.

Errors are measured in two ways: as millimetres in the patient (`evaluate_points`), and in the pixels and slices of the
images that readers marked, in which the competition's solutions report their localizers (`evaluate_on_images`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..errors import DataError
from ..labels import CONDITIONS, LEVELS, N_LEVELS
from ..studies.study import CompetitionFolder
from .points import LOW_CONFIDENCE, DiscPoints, chain_tangents, complete_chain, forward_directions
from .samples import each_study, single_study_folders

logger = logging.getLogger(__name__)

FOUND_MM = 5.0  # a point this near counts as found; a level's confidence is the probability of that
FOUND_PIXELS = 5.0  # the same in pixels of the labelled image, as public solutions of the competition report it
CONFIDENCE_BINS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)  # finer towards 1, where most levels are
NOT_FOUND = "not found"  # the flag of levels of a study on which the localizer found no chain
ERROR_COLUMNS = (
    *("study_id", "level", "error_mm", "along_mm", "backward_mm"),
    *("confidence", "flag", "shift", "low_confidence"),
)
IMAGE_COLUMNS = ["study_id", "level", "series_id", "instance_number", "error_pixels", "slices_apart"]


class PointErrors(NamedTuple):
    """Errors of one study's points, mm (5,), nan where the reference is missing; `shift`: by how many levels the chain
    is too low. `along` the spine's axis, positive where too low; `backward` across that axis in the sagittal plane."""

    distance: np.ndarray
    along: np.ndarray
    backward: np.ndarray
    shift: int


def point_errors(found: np.ndarray, reference: np.ndarray) -> PointErrors:
    """Compare found with reference points (5, 3), LPS mm, nan rows where there is no reference. The axis is that of the
    reference chain, which may keep a distance from the canal: read `along` then, and not `distance`."""
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
    """Errors of many studies, one row a study and level that has a reference, with `ERROR_COLUMNS`. A study that is not
    in `found` has nan errors and the flag "not found", which count as wrong in `summary`."""
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


def summary(errors: pd.DataFrame) -> dict[str, float]:
    """Medians in mm, fractions of levels, counts of studies. `studies_shifted_unflagged` is the one that must be zero.
    "centred": less the mean offset, for a reference that keeps its distance from the canal point."""
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
    """Per bin of confidence (`CONFIDENCE_BINS`, the upper edge belongs to it): levels, mean_confidence, and
    share_within `FOUND_MM`. Calibrated confidence has the same mean and share in every row; bins without a level are
    left out."""
    confidence = errors["confidence"].astype(float)
    names = [f"{low:.2f}-{high:.2f}" for low, high in pairwise(CONFIDENCE_BINS)]
    bins = pd.cut(confidence, CONFIDENCE_BINS, labels=names, include_lowest=True).astype(str)
    within = errors["error_mm"].astype(float) <= FOUND_MM  # nan, which is "not found", is not within
    table = pd.DataFrame({"bin": bins, "levels": 1, "mean_confidence": confidence, "share_within": within})
    means = {"levels": "sum", "mean_confidence": "mean", "share_within": "mean"}
    return table.groupby("bin", as_index=False).agg(means)


def calibration_error(errors: pd.DataFrame) -> float:
    """Expected calibration error (Naeini 2015): mean gap between confidence and share within, bins weighted by their
    levels; nan without any level."""
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
    """Compare found points with the cleaned table's canal points on the very images that were marked, onto which they
    are projected along the normal. One row a labelled level whose image can be read, with `IMAGE_COLUMNS`: the distance
    in the image's own pixels, and how many slices, signed, the point lies from the marked one; nan where not found.
    """
    study_ids = [str(study_id) for study_id in study_ids]
    folders = single_study_folders(folder, study_ids)
    tasks = ((one, study_id, found.get(study_id)) for one, study_id in zip(folders, study_ids, strict=True))
    compared, _ = each_study(_on_images, tasks, study_ids, "labelled images", n_jobs=n_jobs, progress=progress)
    return pd.DataFrame([row for rows in compared.values() for row in rows], columns=IMAGE_COLUMNS)


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
    """What the competition's solutions report of their localizers, for each level that has points and for "all": median
    of pixels and shares of the points, of which those that were not found count as wrong."""
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
    """Reference points (5, 3) by study id, nan where a level has no row. The CSV has the columns `study_column`,
    `level` and `<point>_x` to `<point>_z` in LPS mm, as a synthetic cohort's `truth/discs.csv`."""
    table = pd.read_csv(path, dtype={study_column: str})
    names = [f"{point}_{axis}" for axis in "xyz"]
    absent = [name for name in (study_column, "level", *names) if name not in table.columns]
    if absent:
        raise DataError(f"{path}: lacks the columns {absent}, it has {list(table.columns)}")
    by_study = table.drop_duplicates([study_column, "level"], keep="last").groupby(study_column, sort=False)
    return {
        str(study_id): rows.set_index("level")[names].reindex(LEVELS).to_numpy(dtype=np.float64)
        for study_id, rows in by_study
    }
