"""The five canal points of a study: what the rest of the library gets from localization.

A canal point is what the competition marks: the middle of the spinal canal at the height of the disc, in the
mid-sagittal plane. Everything here is numpy and pandas, so that reading a points file needs no network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import DataError
from ..files import write_table
from ..geometry import ANTERIOR, INFERIOR
from ..labels import CONDITIONS, LEVELS, N_LEVELS, level_title
from ..notebook_html import card

LOW_CONFIDENCE = "low_confidence"
"""The flag of a point that may be wrong; of all five, when the whole chain may lie a level too high or too low."""
LOW_CONFIDENCE_BELOW = 0.8  # points of less confidence get that flag
SOURCES = ("localizer", "table", "truth", "corrected")
POINT_COLUMNS = ("study_id", "series_id", "level", "x", "y", "z", "confidence", "flag")

TYPICAL_STEPS_MM = np.array([35.0, 35.0, 33.3, 28.6])
"""Distance from each canal point to the next lower one in an adult, used only where neighbours tell nothing.
Vertebral body plus disc heights of Nissan and Gilad 1986 (J Biomech 19:753), shortened behind the bodies at L5."""
DUPLICATE_POINT_MM = 0.5
"""Two canal points closer than this are the same point; discs are at least 20 mm apart even in small adults."""
FIRST_LEAD = 0.15
"""By so much must the mean confidence on a later series, or stack, exceed that on the first, which shows most."""
SAME_DISC_MM = 12.0
"""Points nearer along the spine are on one disc; discs are 25 to 45 mm apart. Chains are compared in their median."""
MAX_DISPUTED = 0.75
"""Highest confidence of a point on which two series of a study disagree, so that it is marked, however low the
confidence of one of them is: the other may be wrong."""


@dataclass(frozen=True, eq=False)
class DiscPoints:
    """The canal points of the five discs of one study.

    Parameters
    ----------
    study_id, series_id : str
        The series is the one on which the points were found; may be empty.
    points : array_like, shape (5, 3)
        LPS mm, in the order of `labels.LEVELS`. All finite: fill gaps with `DiscPoints.from_known`.
    confidence : array_like, shape (5,)
        0 to 1: about how probable it is that the point lies at its disc (within 5 mm).
    flags : tuple of 5 str
        "" where all is well, else one or more, separated by ", ", of "interpolated", "extrapolated" (imputed from the
        levels around it), "outside" (of the image) and "low_confidence".
    source : str
        "localizer", "table" (the competition's coordinates), "truth" (a synthetic cohort's) or "corrected" (by hand).

    Raises
    ------
    DataError
        When shapes, ranges or the source are wrong, or two neighbouring points coincide.
    """

    study_id: str
    series_id: str
    points: np.ndarray
    confidence: np.ndarray
    flags: tuple[str, ...] = ("",) * N_LEVELS
    source: str = "localizer"

    def __post_init__(self):
        where = f"study {self.study_id}"
        points = np.array(self.points, dtype=np.float64)
        if points.shape != (N_LEVELS, 3) or not np.all(np.isfinite(points)):
            raise DataError(
                f"{where}: disc points must be {N_LEVELS} x 3 finite mm, got shape {points.shape}: {points}"
            )
        steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
        if steps.min() < DUPLICATE_POINT_MM:
            pair = int(steps.argmin())
            raise DataError(f"{where}: the points of {LEVELS[pair]} and {LEVELS[pair + 1]} are the same place")
        confidence = np.array(self.confidence, dtype=np.float64)
        if confidence.shape != (N_LEVELS,) or not np.all((confidence >= 0) & (confidence <= 1)):
            raise DataError(f"{where}: confidence must be {N_LEVELS} numbers in 0..1, got {confidence}")
        flags = tuple(str(flag) for flag in self.flags)
        if len(flags) != N_LEVELS:
            raise DataError(f"{where}: flags must be {N_LEVELS} texts, got {flags}")
        if self.source not in SOURCES:
            raise DataError(f"{where}: source must be one of {SOURCES}, got {self.source!r}")
        points.setflags(write=False)
        confidence.setflags(write=False)
        texts = {"study_id": str(self.study_id), "series_id": str(self.series_id), "flags": flags}
        for name, value in {**texts, "points": points, "confidence": confidence}.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_known(cls, study_id: str, series_id: str, points: np.ndarray, *, source: str) -> DiscPoints:
        """Points of which some may be missing (rows of nan); these are imputed from their neighbours and flagged.

        Known points get confidence 1, imputed ones 0.5. Raises `DataError` when fewer than two levels are known.
        """
        filled, flags = complete_chain(points)
        return cls(study_id, series_id, filled, [0.5 if flag else 1.0 for flag in flags], flags, source)

    def tangents(self) -> np.ndarray:
        """Unit directions of the canal at each point, towards the feet, shape (5, 3)."""
        return chain_tangents(self.points)

    def forward(self) -> np.ndarray:
        """Unit directions from the canal to the front along the plane of each disc, shape (5, 3)."""
        return forward_directions(self.tangents())

    @property
    def flagged(self) -> bool:
        """Whether any level carries a flag."""
        return any(self.flags)

    def to_frame(self) -> pd.DataFrame:
        """One row a level, columns `POINT_COLUMNS`."""
        return pd.DataFrame(
            {
                "study_id": self.study_id,
                "series_id": self.series_id,
                "level": LEVELS,
                **dict(zip("xyz", self.points.T, strict=True)),
                "confidence": self.confidence,
                "flag": self.flags,
            }
        )

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> DiscPoints:
        """The inverse of `to_frame`: a table that holds exactly the five rows of one study, in any order."""
        absent = [column for column in POINT_COLUMNS if column not in frame.columns]
        if absent:
            raise DataError(f"the points table lacks the columns {absent}, it has {list(frame.columns)}")
        studies = frame["study_id"].astype(str).unique()
        if len(studies) != 1:
            raise DataError(f"expected the points of one study, got {len(studies)} studies; `read_points` takes many")
        levels = frame["level"].astype(str)
        if sorted(levels) != sorted(LEVELS):
            raise DataError(f"study {studies[0]}: expected one row for each of {LEVELS}, got {sorted(levels)}")
        frame = frame.set_index(levels.to_numpy()).loc[list(LEVELS)]
        series_id, *flags = ("" if pd.isna(text) else text for text in (frame["series_id"].iloc[0], *frame["flag"]))
        return cls(studies[0], series_id, frame[["x", "y", "z"]], frame["confidence"], tuple(flags))

    def _repr_html_(self) -> str:
        rows = [
            (level_title(level), *(f"{x:.1f}" for x in self.points[i]), f"{self.confidence[i]:.2f}", self.flags[i])
            for i, level in enumerate(LEVELS)
        ]
        about = f"canal points from {self.source}, series {self.series_id or 'unknown'}, LPS mm"
        return card(f"study {self.study_id}", ("", "x", "y", "z", "confidence", "flag"), rows, about=about)


def with_low_confidence(flags: Iterable[str], confidence: np.ndarray) -> tuple[str, ...]:
    """Add `LOW_CONFIDENCE` to the flags of levels that may be wrong, to all when most are: then the chain may be."""
    low = (confidence < LOW_CONFIDENCE_BELOW) | (np.median(confidence) < LOW_CONFIDENCE_BELOW)
    return tuple(
        ", ".join(part for part in (flag, LOW_CONFIDENCE if is_low else "") if part)
        for flag, is_low in zip(flags, low, strict=True)
    )


def without_low_confidence(flag: str) -> str:
    """What a flag tells beside `LOW_CONFIDENCE`: how the point was imputed, "" where its disc was observed."""
    return ", ".join(part for part in flag.split(", ") if part not in ("", LOW_CONFIDENCE))


def chain_tangents(points: np.ndarray) -> np.ndarray:
    """Unit tangents (n, 3) of a chain of points (n, 3) by finite differences, signed to point to the feet."""
    tangents = np.gradient(np.asarray(points, dtype=np.float64), axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    downward = (points[-1] - points[0]) @ INFERIOR
    return tangents if downward >= 0 else -tangents


def forward_directions(tangents: np.ndarray) -> np.ndarray:
    """Unit directions (n, 3) to the front, each perpendicular to its tangent of the canal (n, 3)."""
    ahead = ANTERIOR - (tangents @ ANTERIOR)[:, None] * tangents
    return ahead / np.linalg.norm(ahead, axis=1, keepdims=True)


def complete_chain(points: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Fill missing levels (rows of nan) of a chain (5, 3) in LPS mm; 5 flags tell which were "interpolated" along the
    line (by the cubic where four are known) or "extrapolated" by the last known step, scaled by how long that step
    usually is. Raises `DataError` when fewer than two levels are known."""
    points = np.array(points, dtype=np.float64)
    if points.shape != (N_LEVELS, 3):
        raise DataError(f"expected {N_LEVELS} x 3 points, got shape {points.shape}")
    known = np.flatnonzero(np.all(np.isfinite(points), axis=1))
    if len(known) < 2:
        raise DataError(f"only {len(known)} of {N_LEVELS} disc levels are known, at least two are needed")
    along = np.concatenate([[0.0], np.cumsum(TYPICAL_STEPS_MM)])
    filled, flags = points.copy(), [""] * N_LEVELS
    for level in sorted({*range(N_LEVELS)} - {*known}):
        inside = known[0] < level < known[-1]
        flags[level] = "interpolated" if inside else "extrapolated"
        if inside and len(known) >= 4:
            filled[level] = np.vander(along[[level]], 4) @ np.polyfit(along[known], points[known], 3)
            continue
        below = np.clip(np.searchsorted(known, level), 1, len(known) - 1)
        first, second = known[below - 1], known[below]
        t = (along[level] - along[first]) / (along[second] - along[first])
        filled[level] = points[first] + t * (points[second] - points[first])
    return filled, tuple(flags)


def fuse_series(study_id: str, results: Sequence[tuple[DiscPoints, float]]) -> DiscPoints:
    """The points of a study from those on each of its series, with their weights in the mean. The most confident
    series, the first with a lead of `FIRST_LEAD`, decides. Points of the same chain are averaged as far as they lie
    together; a level that was imputed is taken from a series on which its disc is seen. Other places, and chains that
    lie on other discs, lower the confidence."""
    chains = [chain for chain, _ in results]
    weights = np.array([weight for _, weight in results])[:, None]
    positions = np.array([chain.points for chain in chains])  # (series, level, 3)
    confidences = np.array([chain.confidence for chain in chains])  # (series, level), as are the masks below
    observed = np.array([[not without_low_confidence(flag) for flag in chain.flags] for chain in chains])
    deciding = int(np.argmax(confidences.mean(axis=1) - np.where(np.arange(len(chains)) > 0, FIRST_LEAD, 0.0)))
    best = chains[deciding]
    down = best.points[-1] - best.points[0]
    down /= np.linalg.norm(down)
    same_chain = np.abs(np.median((positions - best.points) @ down, axis=1)) < SAME_DISC_MM
    # A level that is imputed on one series and observed on another counts where it is observed.
    counts = same_chain[:, None] & (observed | ~(same_chain[:, None] & observed).any(axis=0))
    reference = np.where(counts[deciding], deciding, np.argmax(np.where(counts, confidences, -1.0), axis=0))
    difference = positions - positions[reference, np.arange(len(reference))]
    together = counts & (np.linalg.norm(difference, axis=2) < SAME_DISC_MM)
    weights = together * weights * (confidences + 1e-3)
    points = (weights[..., None] * positions).sum(axis=0) / weights.sum(axis=0)[:, None]
    confidence = np.where(together, confidences, 0.0).max(axis=0)
    # Places on other discs, and chains of other labels, exclude each other: each takes confidence from this one.
    conflicting = np.where(counts & (np.abs(difference @ down) >= SAME_DISC_MM), confidences, 0.0).sum(axis=0)
    confidence *= (confidence + 1e-9) / (confidence + conflicting + 1e-9)
    confidence = np.where(conflicting > 0, np.minimum(confidence, MAX_DISPUTED), confidence)
    means = confidences.mean(axis=1)
    confidence *= means[same_chain].sum() / max(means.sum(), 1e-9)
    if not same_chain.all():
        confidence = np.minimum(confidence, MAX_DISPUTED)
    seen = (together & observed).any(axis=0)
    flags = ("" if here else without_low_confidence(flag) for here, flag in zip(seen, best.flags, strict=True))
    return DiscPoints(study_id, best.series_id, points, confidence, with_low_confidence(flags, confidence), best.source)


def write_points(path: str | Path, discs: Iterable[DiscPoints]) -> Path:
    """Write the points of many studies as one CSV (columns `POINT_COLUMNS`), atomically."""
    frames = [item.to_frame() for item in discs] or [pd.DataFrame(columns=list(POINT_COLUMNS))]
    write_table(Path(path), pd.concat(frames, ignore_index=True), float_format="%.4f")
    return Path(path)


def read_points(path: str | Path) -> Mapping[str, DiscPoints]:
    """Read what `write_points` wrote: study id -> `DiscPoints`, in the file's order. Of a table with all 25 points of a
    study the canal's are taken. Raises `DataError`."""
    path = Path(path)
    try:
        table = pd.read_csv(path, dtype={"study_id": str, "series_id": str, "flag": str})
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read the points file ({error})") from error
    if "study_id" not in table.columns:
        raise DataError(f"{path}: the points table lacks the column study_id, it has {list(table.columns)}")
    if "condition" in table.columns:
        table = table[table["condition"] == CONDITIONS[0]]
    return {str(study_id): DiscPoints.from_frame(rows) for study_id, rows in table.groupby("study_id", sort=False)}
