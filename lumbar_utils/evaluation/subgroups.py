"""Where a network is good and where not: its loss by level, by scan parameters, by the localizer's confidence.

The loss of a subgroup is the mean of the metric's three families' terms, over those of its labels that lie in it; the
fourth term needs whole studies. Subgroups differ in difficulty, so they can be compared with a reference.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ..errors import DataError
from ..labels import AXIAL_T2, LEVELS, MISSING, N_LEVELS, N_TARGETS, SAGITTAL_T1, SAGITTAL_T2, VIEWS, level_title
from ..localization import DiscPoints
from ..metrics.bootstrap import resample_counts, with_interval
from ..metrics.score import FAMILY_TARGETS, checked_predictions, term_sums

MAX_DISTINCT, PARTS = 4, 3
"""Numbers that take at most so many values are subgroups as they are; others are put into `PARTS` of equal size."""
SUBGROUP_COLUMNS = ("trait", "subgroup", "studies", "labels", "loss", "low", "high")
REFERENCE_COLUMNS = ("reference", "above", "above_low", "above_high")
CONFIDENCE_EDGES = (0.0, 0.9, 0.97, 0.99, 1.0)
"""Of the localizer's confidence; most discs lie close to 1."""


def loss_by_traits(
    labels: np.ndarray,
    probabilities: np.ndarray,
    traits: Mapping[str, pd.Series | pd.DataFrame | np.ndarray],
    reference: np.ndarray | None = None,
    *,
    n: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Loss in the subgroups of one trait after the other, each with its bootstrap interval over studies.

    Labels are int (n_studies, 25), -1 where not labelled; probabilities (n_studies, 25, 3) as they are scored. A trait
    tells what a study (n_studies,), a level of it (n_studies, 5) or a target of it (n_studies, 25) belongs to, as
    Series, DataFrame or array; "" and nan belong nowhere. Categories keep their order, others come as they first
    appear; traits in which all are alike are left out. `reference` are predictions to compare with on the same labels,
    such as `HeldOutStudies.best_known`; there are `n` resamples.

    The table has `SUBGROUP_COLUMNS`, and `REFERENCE_COLUMNS` with a reference: its loss, and how far the loss lies
    above it, with the paired interval. nan where one of the three families has no label.
    """
    labels, probabilities = checked_predictions(labels, probabilities)
    counts = resample_counts(len(labels), n, seed)
    rows = []
    for trait, subgroups in traits.items():
        places = _spread(np.asarray(subgroups, dtype=object), labels)
        present = [one for one in dict.fromkeys(places.ravel()) if one != ""]
        order = [one for one in _categories(subgroups) if one in present] or present
        for subgroup in order if len(order) > 1 else ():
            inside = np.where(places == subgroup, labels, MISSING)
            known = inside != MISSING
            own = _family_means(inside, probabilities, counts)
            row = [trait, str(subgroup), int(known.any(axis=1).sum()), int(known.sum()), *with_interval(own)]
            if reference is not None:
                other = _family_means(inside, reference, counts)
                row += [other[0], *with_interval(own - other)]
            rows.append(row)
    return pd.DataFrame(rows, columns=list(SUBGROUP_COLUMNS + (REFERENCE_COLUMNS if reference is not None else ())))


def level_subgroups(n_studies: int) -> np.ndarray:
    """The level of each target as a subgroup, (n_studies, 5)."""
    return np.tile([level_title(level) for level in LEVELS], (n_studies, 1)).astype(object)


def confidence_subgroups(found: Mapping[str, DiscPoints], study_ids: Sequence[str]) -> pd.DataFrame:
    """The localizer's confidence at each level as a subgroup, (n_studies, 5); nan where a study has no points."""
    names = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(CONFIDENCE_EDGES)]
    values = np.array([found[s].confidence if s in found else [np.nan] * N_LEVELS for s in study_ids])
    edges = (*CONFIDENCE_EDGES[:-1], np.inf)
    return pd.DataFrame({v: pd.cut(values[:, i], edges, right=False, labels=names) for i, v in enumerate(LEVELS)})


def error_subgroups(
    found: Mapping[str, DiscPoints], reference: Mapping[str, np.ndarray], study_ids: Sequence[str]
) -> pd.DataFrame:
    """How far the found point of each level lies from the reference, in mm, in parts of equal size, (n_studies, 5).

    reference: LPS mm (5, 3) by study id, as `localization.reference_points` gives them; nan where either is not known.
    """
    values = np.full((len(study_ids), N_LEVELS), np.nan)
    for row, study_id in enumerate(study_ids):
        if study_id in found and study_id in reference:
            values[row] = np.linalg.norm(found[study_id].points - reference[study_id], axis=1)
    flat = number_subgroups(pd.Series(values.ravel()))
    return pd.DataFrame({level: flat.iloc[i::N_LEVELS].array for i, level in enumerate(LEVELS)})


def scanner_traits(series: pd.DataFrame, study_ids: Sequence[str]) -> dict[str, pd.Series]:
    """Scan parameters as subgroups of studies: sizes of pixels and slice steps, field, times, stacks, missing views.

    From `studies.series_table`; of several series of a view the one with most slices counts. Gives Series (n_studies,)
    by trait, in the order of `study_ids`, numbers as ordered categories; "" or nan where not known. Traits of which
    nothing is known are left out. Raises `DataError` when a column is absent.
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
    traits = {name: number_subgroups(values) for name, values in numbers.items() if values is not None}
    stacks, sagittal = table[AXIAL_T2]["stacks"], table[SAGITTAL_T2]
    words = {"axial stacks": np.select([stacks.isna(), stacks > 1], ["", "several"], "one")}
    if "inversion_ms" in series:
        words["fluid-sensitive"] = np.select(
            [sagittal["slices"].isna(), sagittal["inversion_ms"] > 0], ["", "STIR"], "T2"
        )
    lacking = [[view for view in VIEWS if pd.isna(table[view]["slices"].loc[study])] for study in study_ids]
    words["views"] = ["without " + " and ".join(views) if views else "all there" for views in lacking]
    traits |= {name: pd.Series(values, list(study_ids), dtype=object) for name, values in words.items()}
    return {name: values for name, values in traits.items() if (values.notna() & (values != "")).any()}


def number_subgroups(values: pd.Series) -> pd.Series:
    """Numbers as ordered subgroups: as they are when these are few, else in three parts of equal size; nan stays."""
    values = pd.to_numeric(values, errors="coerce").astype(float)
    codes, known = pd.factorize(values, sort=True)
    names = [f"{value:g}" for value in known]
    if len(known) > MAX_DISTINCT:
        parts, edges = pd.qcut(values, PARTS, labels=False, retbins=True, duplicates="drop")
        codes, names = parts.fillna(-1).astype(int), [f"{a:.3g} to {b:.3g}" for a, b in itertools.pairwise(edges)]
    named = [names[code] if code >= 0 else None for code in codes]
    return pd.Series(pd.Categorical(named, list(dict.fromkeys(names)), ordered=True), index=values.index)


def _categories(subgroups: object) -> list[str]:
    """The categories of a categorical Series, or of a DataFrame's first column; none of anything else."""
    column = subgroups.iloc[:, 0] if isinstance(subgroups, pd.DataFrame) else subgroups
    return list(column.cat.categories) if isinstance(getattr(column, "dtype", None), pd.CategoricalDtype) else []


def _spread(subgroups: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Subgroups of studies or levels as those of targets, (n_studies, 25)."""
    subgroups, n = np.where(pd.isna(subgroups), "", subgroups), len(labels)
    if subgroups.shape not in ((n,), (n, N_LEVELS), (n, N_TARGETS)):
        expected = f"({n},), ({n}, {N_LEVELS}) or ({n}, {N_TARGETS})"
        raise DataError(f"subgroups must have shape {expected}, got {subgroups.shape}")
    width = 1 if subgroups.ndim == 1 else subgroups.shape[1]
    return np.tile(subgroups.reshape(n, width), (1, N_TARGETS // width))


def _family_means(labels: np.ndarray, probabilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of the three families' terms for each row of counts; nan where a family has no label."""
    loss, weight = (part[:, : len(FAMILY_TARGETS)] for part in term_sums(labels, probabilities))
    with np.errstate(invalid="ignore"):
        return ((counts @ loss) / (counts @ weight)).mean(axis=1)
