"""The vocabulary of the task: levels, conditions, severities, targets, and their order.

Nothing else in the library spells these names. Integer arrays of labels and arrays of predictions are
always *condition-major*: target `t` is condition `t // 5` at level `t % 5`, conditions and levels in the
order below, which is also the order of the columns of the competition's `train.csv`.

Source: RSNA 2024 Lumbar Spine Degenerative Classification, data description.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from .errors import DataError

LEVELS = ("l1_l2", "l2_l3", "l3_l4", "l4_l5", "l5_s1")
CONDITIONS = (
    "spinal_canal_stenosis",
    "left_neural_foraminal_narrowing",
    "right_neural_foraminal_narrowing",
    "left_subarticular_stenosis",
    "right_subarticular_stenosis",
)
SEVERITIES = ("Normal/Mild", "Moderate", "Severe")
PROBABILITY_COLUMNS = ("normal_mild", "moderate", "severe")
SEVERITY_WEIGHTS = (1.0, 2.0, 4.0)
MISSING = -1
"""Integer code of a target that was not labelled."""

N_LEVELS = len(LEVELS)
N_CONDITIONS = len(CONDITIONS)
N_SEVERITIES = len(SEVERITIES)
TARGETS = tuple(f"{condition}_{level}" for condition in CONDITIONS for level in LEVELS)
N_TARGETS = len(TARGETS)

FAMILIES = {"spinal": (0,), "foraminal": (1, 2), "subarticular": (3, 4)}
"""The metric's three groups, as indices into `CONDITIONS`."""

SAGITTAL_T1 = "Sagittal T1"
SAGITTAL_T2 = "Sagittal T2/STIR"
AXIAL_T2 = "Axial T2"
VIEWS = (SAGITTAL_T2, AXIAL_T2, SAGITTAL_T1)
"""Series descriptions of the competition, in the order in which the streams are concatenated."""

MIRRORED_CONDITIONS = (0, 2, 1, 4, 3)
"""`CONDITIONS` after left and right have changed places."""

MIRROR_PERMUTATION = np.array([c * N_LEVELS + level for c in MIRRORED_CONDITIONS for level in range(N_LEVELS)])
"""Index array of shape (25,): `labels[..., MIRROR_PERMUTATION]` are the labels of the mirrored study."""


def target_index(condition: int | str, level: int | str) -> int:
    """Position in `TARGETS` of a condition at a level, each given by name or by index."""
    c = CONDITIONS.index(condition) if isinstance(condition, str) else condition
    v = LEVELS.index(level) if isinstance(level, str) else level
    return c * N_LEVELS + v


def level_title(level: str) -> str:
    """`"l1_l2"` -> `"L1/L2"`, as in `train_label_coordinates.csv`."""
    return level.upper().replace("_", "/")


def level_from_title(title: str) -> str:
    """`"L1/L2"` -> `"l1_l2"`. Raises `DataError` for anything that is not one of the five levels."""
    level = str(title).strip().lower().replace("/", "_")
    if level not in LEVELS:
        raise DataError(f"unknown level {title!r}, expected one of {[level_title(name) for name in LEVELS]}")
    return level


def condition_title(condition: str) -> str:
    """`"left_neural_foraminal_narrowing"` -> `"Left Neural Foraminal Narrowing"`."""
    return condition.replace("_", " ").title()


def condition_from_title(title: str) -> str:
    """`"Left Neural Foraminal Narrowing"` -> `"left_neural_foraminal_narrowing"`; raises `DataError`."""
    condition = str(title).strip().lower().replace(" ", "_")
    if condition not in CONDITIONS:
        raise DataError(f"unknown condition {title!r}, expected one of {[condition_title(c) for c in CONDITIONS]}")
    return condition


def row_ids(study_ids: Iterable[str | int]) -> list[str]:
    """Row ids of a submission, `<study_id>_<condition>_<level>`, studies as given, targets in `TARGETS` order."""
    return [f"{study_id}_{target}" for study_id in study_ids for target in TARGETS]


def split_row_id(row_id: str) -> tuple[str, int]:
    """Split a submission's row id into (study_id, target index). Raises `DataError` when it is not a row id."""
    for index, target in enumerate(TARGETS):
        if row_id.endswith("_" + target):
            return row_id[: -len(target) - 1], index
    raise DataError(f"row_id {row_id!r} does not end with a condition and a level, for example {TARGETS[0]!r}")


def encode_severities(frame: pd.DataFrame, columns: Sequence[str] = TARGETS) -> np.ndarray:
    """A table in `train.csv` form, one row a study, to int8 (n_studies, len(columns)).

    The columns hold `Normal/Mild`, `Moderate`, `Severe` or nothing: 0, 1, 2 or `MISSING` (-1). Raises `DataError` when
    a column is absent or a cell holds anything else.
    """
    absent = [c for c in columns if c not in frame.columns]
    if absent:
        raise DataError(f"the label table lacks {len(absent)} of {len(columns)} columns, the first is {absent[0]!r}")
    codes = np.full((len(frame), len(columns)), MISSING, dtype=np.int8)
    for j, column in enumerate(columns):
        values = frame[column]
        codes[:, j] = pd.Index(SEVERITIES).get_indexer(values)  # -1 where it is none of them
        strange = values[(codes[:, j] == MISSING) & values.notna() & (values.astype(str).str.strip() != "")]
        if len(strange):
            raise DataError(f"column {column!r} holds {strange.iloc[0]!r}, expected one of {SEVERITIES} or empty")
    return codes


def decode_severities(codes: np.ndarray, study_ids: Sequence[str | int]) -> pd.DataFrame:
    """The inverse of `encode_severities`: integers of shape (n_studies, 25) to a table in `train.csv` form."""
    codes = np.asarray(codes)
    if codes.shape != (len(study_ids), N_TARGETS):
        raise DataError(f"labels must have shape ({len(study_ids)}, {N_TARGETS}), got {codes.shape}")
    names = np.array([*SEVERITIES, None], dtype=object)
    frame = pd.DataFrame(names[codes], columns=list(TARGETS))
    frame.insert(0, "study_id", list(study_ids))
    return frame
