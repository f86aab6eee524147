"""Where a network is good and where not: its loss by level, by what the scanner did, by the localizer's confidence.

The loss of a subgroup is the mean of the metric's three families' terms, over those of its labels that lie in it; the
fourth term needs whole studies. Subgroups differ in how hard their labels are, so a reference can stand beside.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..errors import DataError, LumbarError
from ..geometry import group_into_stacks
from ..labels import (
    AXIAL_T2,
    LEVELS,
    MISSING,
    N_CONDITIONS,
    N_LEVELS,
    N_TARGETS,
    SAGITTAL_T1,
    SAGITTAL_T2,
    SEVERITY_WEIGHTS,
    VIEWS,
    level_title,
)
from ..metrics.score import FAMILY_TARGETS, log_losses
from ..studies.source_images import read_source_images
from .agreement import interval, resample_counts
from .tables import checked_grades

if TYPE_CHECKING:
    from ..localization import DiscPoints
    from ..studies.study import StudySource

logger = logging.getLogger(__name__)

SCANNER_COLUMNS = (
    *("study_id", "series_id", "view", "slices", "stacks", "pixel_mm", "step_mm"),
    *("field_T", "echo_ms", "inversion_ms"),
)
FEW_VALUES = 4
"""Numbers that take at most so many values are subgroups as they are; others are put into parts of equal size."""
SUBGROUP_COLUMNS = ("trait", "subgroup", "studies", "labels", "loss", "low", "high")
REFERENCE_COLUMNS = ("reference", "above", "above_low", "above_high")
CONFIDENCE_EDGES = (0.0, 0.9, 0.97, 0.99, 1.0)
"""Of the localizer's confidence; most discs lie close to 1."""


def loss_by_subgroup(
    labels: np.ndarray,
    probabilities: np.ndarray,
    subgroups: pd.Series | pd.DataFrame | Sequence | np.ndarray,
    reference: np.ndarray | None = None,
    *,
    trait: str = "",
    n: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Loss in each subgroup with its bootstrap interval over studies.

    Parameters
    ----------
    labels, probabilities : arrays (n_studies, 25) and (n_studies, 25, 3)
        Labels -1 where not labelled.
    subgroups : Series, DataFrame or array, (n_studies,), (n_studies, 5) or (n_studies, 25)
        What a study, a level of it or a target of it belongs to; "" and nan belong nowhere. Categories keep their
        order, others come as they first appear.
    reference : array (n_studies, 25, 3), optional
        Predictions to compare with on the same labels, such as `HeldOutStudies.best_known`.
    trait : str
        Written into every row.
    n, seed
        Resamples.

    Returns
    -------
    DataFrame
        `SUBGROUP_COLUMNS`, and `REFERENCE_COLUMNS` with a reference: its loss, and how far the loss lies above it, with
        the paired interval. nan where one of the three families has no label.
    """
    labels, probabilities = checked_grades(labels, probabilities)
    places = _spread(np.asarray(subgroups, dtype=object), labels)
    present = [one for one in dict.fromkeys(places.ravel()) if one != ""]
    order = [one for one in _categories(subgroups) if one in present] or present
    weights = np.where(labels == MISSING, 0.0, np.asarray(SEVERITY_WEIGHTS)[labels])
    losses = [weights * log_losses(labels, p) for p in (probabilities, reference) if p is not None]
    counts = resample_counts(len(labels), n, seed)
    rows = []
    for subgroup in order:
        inside = (places == subgroup) & (labels != MISSING)
        values, resampled = zip(*(_family_mean(loss, weights, inside, counts) for loss in losses), strict=True)
        row = [trait, str(subgroup), int(inside.any(axis=1).sum()), int(inside.sum()), values[0]]
        row += interval(resampled[0])
        if reference is not None:
            row += [values[1], values[0] - values[1], *interval(resampled[0] - resampled[1])]
        rows.append(row)
    return pd.DataFrame(rows, columns=list(SUBGROUP_COLUMNS + (REFERENCE_COLUMNS if reference is not None else ())))


def loss_by_traits(
    labels: np.ndarray,
    probabilities: np.ndarray,
    traits: Mapping[str, pd.Series | pd.DataFrame | np.ndarray],
    reference: np.ndarray | None = None,
    *,
    n: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """`loss_by_subgroup` for one trait after the other, in one table. Traits in which all are alike are left out."""
    tables = [
        loss_by_subgroup(labels, probabilities, subgroups, reference, trait=name, n=n, seed=seed)
        for name, subgroups in traits.items()
    ]
    tables = [table for table in tables if len(table) > 1]
    columns = SUBGROUP_COLUMNS + (REFERENCE_COLUMNS if reference is not None else ())
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(columns))


def level_subgroups(n_studies: int) -> np.ndarray:
    """The level of each target as a subgroup, (n_studies, 5)."""
    return np.tile([level_title(level) for level in LEVELS], (n_studies, 1)).astype(object)


def confidence_subgroups(
    found: Mapping[str, DiscPoints], study_ids: Sequence[str], edges: Sequence[float] = CONFIDENCE_EDGES
) -> pd.DataFrame:
    """The localizer's confidence at each level as a subgroup, (n_studies, 5); nan where a study has no points."""
    words = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)]
    values = np.array([found[s].confidence if s in found else [np.nan] * N_LEVELS for s in study_ids])
    codes = np.where(np.isnan(values), -1, np.digitize(values, edges[1:-1]))
    dtype = pd.CategoricalDtype(words, ordered=True)
    return pd.DataFrame({level: pd.Categorical.from_codes(codes[:, i], dtype=dtype) for i, level in enumerate(LEVELS)})


def error_subgroups(
    found: Mapping[str, DiscPoints], reference: Mapping[str, np.ndarray], study_ids: Sequence[str], *, parts: int = 3
) -> pd.DataFrame:
    """How far the found point of each level lies from the reference, in mm, in parts of equal size, (n_studies, 5).

    reference: LPS mm (5, 3) by study id, as `locating.reference_points` gives them; nan where either is not known.
    """
    values = np.full((len(study_ids), N_LEVELS), np.nan)
    for row, study_id in enumerate(study_ids):
        if study_id in found and study_id in reference:
            values[row] = np.linalg.norm(found[study_id].points - reference[study_id], axis=1)
    flat = number_subgroups(pd.Series(values.ravel()), parts)
    return pd.DataFrame({level: flat.iloc[i::N_LEVELS].array for i, level in enumerate(LEVELS)})


def scanner_table(sources: Sequence[StudySource]) -> pd.DataFrame:
    """How each series of the three views was scanned, by headers alone, a hundred studies in a few seconds.

    One row a series, columns `SCANNER_COLUMNS`: mm of the largest stack, field in T, times in ms; nan where missing.
    Studies that cannot be read are logged and left out. `eda.series_table` tells more, and reads the pixels.
    """
    rows = []
    for source in sources:
        try:
            evidence = read_source_images(source)
        except LumbarError as error:
            logger.warning("study %s left out: %s", source.study_id, error)
            continue
        for series_id in dict.fromkeys(image.series_id for image in evidence.images):
            images = [image for image in evidence.images if image.series_id == series_id]
            frames = [frame for image in images for frame in image.frames]
            stacks = group_into_stacks(frames)
            largest = frames[max(stacks, key=len)[0]]
            offsets = np.sort([frames[k].position @ largest.normal for k in max(stacks, key=len)])
            header = evidence.acquisitions[series_id]
            times = [header.get(name) for name in ("MagneticFieldStrength", "EchoTime", "InversionTime")]
            step = float(np.median(np.diff(offsets))) if len(offsets) > 1 else np.nan
            sizes = (len(frames), len(stacks), largest.spacing[1], step)
            rows.append((source.study_id, series_id, images[0].view, *sizes, *times))
    return pd.DataFrame(rows, columns=list(SCANNER_COLUMNS))


def scanner_traits(series: pd.DataFrame, study_ids: Sequence[str], *, parts: int = 3) -> dict[str, pd.Series]:
    """What the scanner did, as subgroups of studies: sizes of pixels and steps, field, times, stacks, missing views.

    Parameters
    ----------
    series : DataFrame
        From `scanner_table` or `eda.series_table`. Of several series of a view the one with most slices counts.
    study_ids : sequence of str
        The order of the result.
    parts : int
        Into how many parts of equal size numbers are put, unless they take few values.

    Returns
    -------
    dict
        Series (n_studies,) by trait, numbers as ordered categories; "" or nan where not known. Traits of which nothing
        is known are left out.
    """
    absent = sorted({"study_id", "view", "slices", "pixel_mm", "step_mm", "stacks"} - set(series.columns))
    if absent:
        raise DataError(f"the table of series lacks {absent}, it has {list(series.columns)}")
    main = series.sort_values("slices", ascending=False, kind="stable").drop_duplicates(["study_id", "view"])
    table = {view: main[main["view"] == view].set_index("study_id").reindex(study_ids) for view in VIEWS}
    numbers = {
        "T2 pixel, mm": table[SAGITTAL_T2]["pixel_mm"],
        "T2 slice step, mm": table[SAGITTAL_T2]["step_mm"],
        "axial slice step, mm": table[AXIAL_T2]["step_mm"],
        "T1 slice step, mm": table[SAGITTAL_T1]["step_mm"],
        "field, T": table[SAGITTAL_T2].get("field_T"),
        "T2 echo time, ms": table[SAGITTAL_T2].get("echo_ms"),
    }
    traits = {name: number_subgroups(values, parts) for name, values in numbers.items() if values is not None}
    stacks = table[AXIAL_T2]["stacks"]
    blocks = np.select([stacks.isna(), stacks > 1], ["", "several"], "one")
    traits["axial stacks"] = pd.Series(blocks, index=stacks.index, dtype=object)
    if "inversion_ms" in series:
        inverted = table[SAGITTAL_T2]["inversion_ms"].gt(0)
        there = table[SAGITTAL_T2]["slices"].notna()
        kind = np.select([~there, inverted], ["", "STIR"], "T2")
        traits["fluid-sensitive"] = pd.Series(kind, index=inverted.index, dtype=object)
    lacking = [[view for view in VIEWS if pd.isna(table[view]["slices"].loc[study])] for study in study_ids]
    words = ["without " + " and ".join(views) if views else "all there" for views in lacking]
    traits["views"] = pd.Series(words, index=list(study_ids), dtype=object)
    return {name: values for name, values in traits.items() if (values.notna() & (values != "")).any()}


def number_subgroups(values: pd.Series, parts: int = 3) -> pd.Series:
    """Numbers as ordered subgroups: as they are when they take few values, else in parts of equal size; nan stays."""
    values = pd.to_numeric(values, errors="coerce")
    known = np.sort(values.dropna().unique())
    if len(known) <= FEW_VALUES:
        words, codes = [f"{value:g}" for value in known], np.searchsorted(known, values)
    else:
        edges = np.unique(np.quantile(values.dropna(), np.linspace(0, 1, parts + 1)))
        words = [f"{low:.3g} to {high:.3g}" for low, high in itertools.pairwise(edges)]
        codes = np.digitize(values, edges[1:-1])
    named = [words[code] if known else None for code, known in zip(codes, values.notna(), strict=True)]
    return pd.Series(pd.Categorical(named, categories=list(dict.fromkeys(words)), ordered=True), index=values.index)


def _categories(subgroups: object) -> list[str]:
    """The categories of a categorical Series, or of a DataFrame's first column; none of anything else."""
    column = subgroups.iloc[:, 0] if isinstance(subgroups, pd.DataFrame) else subgroups
    return list(column.cat.categories) if isinstance(getattr(column, "dtype", None), pd.CategoricalDtype) else []


def _spread(subgroups: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Subgroups of studies or levels as those of targets, (n_studies, 25)."""
    subgroups = np.where(pd.isna(subgroups), "", subgroups)
    n = len(labels)
    if subgroups.shape == (n,):
        return np.repeat(subgroups[:, None], N_TARGETS, axis=1)
    if subgroups.shape == (n, N_LEVELS):
        return np.tile(subgroups, (1, N_CONDITIONS))
    if subgroups.shape == (n, N_TARGETS):
        return subgroups
    raise DataError(f"subgroups must have shape ({n},), ({n}, {N_LEVELS}) or ({n}, {N_TARGETS}), got {subgroups.shape}")


def _family_mean(
    losses: np.ndarray, weights: np.ndarray, inside: np.ndarray, counts: np.ndarray
) -> tuple[float, np.ndarray]:
    """Mean over the families of weighted log loss, of all studies and of each resample (n,); nan without labels."""
    losses, weights = losses * inside, weights * inside
    total = np.stack([losses[:, targets].sum(axis=1) for targets in FAMILY_TARGETS.values()], axis=1)
    weight = np.stack([weights[:, targets].sum(axis=1) for targets in FAMILY_TARGETS.values()], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = (total.sum(axis=0) / weight.sum(axis=0)).mean()
        resampled = ((counts @ total) / (counts @ weight)).mean(axis=1)
    return float(value), resampled
