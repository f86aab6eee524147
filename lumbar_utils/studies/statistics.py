"""What a first look at a cohort needs, as tables: labels, what comes with what, and what the scanners made.

The numbers of the real RSNA 2024 set stand beside, so that a synthetic cohort can be compared with it, and a
download of the real one be recognised.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..dicom.series import Series
from ..labels import (
    CONDITIONS,
    FAMILIES,
    LEVELS,
    MISSING,
    N_CONDITIONS,
    N_LEVELS,
    TARGETS,
    condition_from_title,
    condition_title,
    level_from_title,
    level_title,
)
from ..notebook_html import progress_bar
from ..parallel import JobFailure, run_jobs
from .study import StudySource, load_study

logger = logging.getLogger(__name__)

MODERATE_PERCENT = np.array(
    [
        [3.4, 7.7, 11.7, 12.0, 2.6],
        [3.2, 8.7, 20.8, 31.9, 26.3],
        [3.2, 8.5, 21.0, 31.9, 25.1],
        [4.7, 12.9, 23.0, 31.6, 20.7],
        [5.6, 12.3, 23.0, 31.5, 20.1],
    ]
)
SEVERE_PERCENT = np.array(
    [
        [1.1, 2.7, 6.2, 12.9, 1.0],
        [0.1, 0.6, 2.0, 7.1, 10.4],
        [0.7, 0.3, 2.1, 6.6, 9.6],
        [1.4, 4.2, 9.8, 23.3, 7.4],
        [1.2, 3.7, 10.0, 23.3, 8.8],
    ]
)
"""Percent of labelled targets graded moderate and severe in the 1,975 training studies of RSNA 2024, by condition and
level, shape (5, 5)."""
REAL_PREVALENCE = np.stack([MODERATE_PERCENT.ravel(), SEVERE_PERCENT.ravel()], axis=1)
"""The same by target, shape (25, 2)."""

SLICE_ORDERS = (
    ("right to left", "left to right"),
    ("front to back", "back to front"),
    ("feet to head", "head to feet"),
)
"""Words for slices that run along +x and -x, +y and -y, +z and -z of the patient with rising instance number."""
SERIES_COLUMNS = (
    *("study_id", "series_id", "view", "slices", "stacks", "rows", "columns", "pixel_mm", "step_mm", "order"),
    *("field_T", "repetition_ms", "echo_ms", "inversion_ms", "issues"),
)
"""Columns of `series_table`; sizes in pixels and mm of the largest stack, times in ms."""


def label_table(labels: np.ndarray) -> pd.DataFrame:
    """Percent `moderate / severe` per condition and level, as text; labels int (n, 25), -1 where not labelled."""
    labels = np.asarray(labels)
    known = np.maximum((labels != MISSING).sum(axis=0), 1)
    moderate, severe = (100 * (labels == k).sum(axis=0) / known for k in (1, 2))
    cells = [f"{m:.1f} / {s:.1f}" for m, s in zip(moderate, severe, strict=True)]
    return pd.DataFrame(
        np.array(cells, dtype=object).reshape(N_CONDITIONS, N_LEVELS),
        index=[condition_title(c) for c in CONDITIONS],
        columns=[level_title(v) for v in LEVELS],
    )


def rank_correlation(labels: np.ndarray) -> pd.DataFrame:
    """Spearman's correlation of all targets, (25, 25), over the studies in which both are labelled."""
    values = np.where(np.asarray(labels) == MISSING, np.nan, labels)
    return pd.DataFrame(values, columns=list(TARGETS)).corr("spearman")


def describe_series(series: Series) -> dict:
    """One row of `series_table`: what was scanned and how, sizes in mm of the largest stack."""
    geometry = series.stacks[0].geometry
    times = [series.header.get(name) for name in ("RepetitionTime", "EchoTime", "InversionTime")]
    values = (
        *(series.study_id, series.series_id, series.view, series.n_slices, len(series.stacks)),
        *(*geometry.shape, geometry.spacing[1], geometry.slice_spacing, slice_order(series)),
        *(series.header.get("MagneticFieldStrength"), *times, len(series.issues)),
    )
    return dict(zip(SERIES_COLUMNS, values, strict=True))


def slice_order(series: Series) -> str:
    """Which way slices run with rising instance number: a word of `SLICE_ORDERS`, "mixed", or "single"."""
    numbers = np.concatenate([stack.instance_numbers for stack in series.stacks])
    if len(numbers) < 2:
        return "single"
    positions = np.concatenate([stack.geometry.positions for stack in series.stacks])
    axis = int(np.abs(series.stacks[0].geometry.normal).argmax())
    steps = np.diff(positions[np.argsort(numbers, kind="stable"), axis])
    if (steps > 0).all() or (steps < 0).all():
        return SLICE_ORDERS[axis][int(steps[0] < 0)]
    return "mixed"


def series_table(sources: Sequence[StudySource], *, n_jobs: int = 2, progress: bool = True) -> pd.DataFrame:
    """`describe_series` for every series of the studies, read in parallel; studies that cannot be read are logged."""
    done = run_jobs(_describe_study, ((source,) for source in sources), n_jobs=n_jobs, ordered=True)
    rows: list[dict] = []
    for index, described in progress_bar(done, total=len(sources), desc="studies", unit="study", disable=not progress):
        if isinstance(described, JobFailure):
            logger.warning("study %s left out: %s", sources[index].study_id, described.reason)
        else:
            rows.extend(described)
    return pd.DataFrame(rows, columns=list(SERIES_COLUMNS))


def point_places(coordinates: pd.DataFrame, series: pd.DataFrame) -> pd.DataFrame:
    """family, level_index, x_fraction, y_fraction of the coordinate table's points in the images of `series_table`."""
    family_of = {CONDITIONS[c]: family for family, members in FAMILIES.items() for c in members}
    sizes = series[["series_id", "rows", "columns"]].drop_duplicates("series_id")
    table = coordinates.assign(series_id=coordinates["series_id"].astype(str)).merge(sizes, on="series_id")
    return pd.DataFrame(
        {
            "family": [family_of[condition_from_title(name)] for name in table["condition"]],
            "level_index": [LEVELS.index(level_from_title(name)) for name in table["level"]],
            "x_fraction": table["x"] / table["columns"],
            "y_fraction": table["y"] / table["rows"],
        }
    )


def _describe_study(source: StudySource) -> list[dict]:
    return [describe_series(series) for series in load_study(source).series]
