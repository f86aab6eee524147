"""What a study is once it has been read: its series, by view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..dicom.series import Series
from ..errors import DataError, Issue
from ..geometry import INFERIOR, LEFT, POSTERIOR
from ..labels import AXIAL_T2, VIEWS
from ..notebook_html import card, stack_thumbnail

LUMBAR_MM = np.array([80.0, 60.0, 220.0])
"""Width, depth and height of a box with the lumbar spine; what a scan shows beyond is of no use here."""


def extent(series: Series) -> np.ndarray:
    """Lowest and highest LPS mm of the middles of a series' image edges, shape (2, 3)."""
    corners = []
    for stack in series.stacks:
        rows, columns = stack.geometry.shape
        k, i, j = np.meshgrid([0, len(stack) - 1], [0, rows - 1], [0, columns - 1])
        corners.append(stack.geometry.voxel_to_world(np.stack([k, i, j], axis=-1).reshape(-1, 3)))
    both = np.concatenate(corners)
    return np.stack([both.min(axis=0), both.max(axis=0)])


def suitability(series: Series) -> tuple[float, ...]:
    """What series of a view are sorted by, the best suited first."""
    cover = np.round(np.minimum(np.ptp(extent(series), axis=0), LUMBAR_MM) / 10).sum() if series.stacks else 0.0
    pixel = max(max(stack.geometry.spacing) for stack in series.stacks) if series.stacks else 0.0
    return sum(series.drawbacks.values()), -cover, round(pixel, 1), -series.n_slices


@dataclass(frozen=True)
class Study:
    """All series of one examination that could be read.

    Parameters
    ----------
    study_id : str
    series : tuple of Series
        In the order of the table, then those that it does not name.
    issues : tuple of Issue
        Series that are missing or cannot be read, and what was guessed. Issues inside a series are its own.
    """

    study_id: str
    series: tuple[Series, ...]
    issues: tuple[Issue, ...] = ()

    @property
    def all_issues(self) -> tuple[Issue, ...]:
        """Those of the study, then those of each series."""
        return (*self.issues, *(issue for series in self.series for issue in series.issues))

    def by_view(self, view: str) -> tuple[Series, ...]:
        """Series of one of `labels.VIEWS`, the best suited first; empty when the view is missing.

        Plain scans come before those with a contrast medium, fat saturation, proton density or the like, then the one
        that covers more of the lumbar spine, then finer pixels, then more slices.
        """
        if view not in VIEWS:
            raise DataError(f"view {view!r} is not known, expected one of {VIEWS}")
        found = [series for series in self.series if series.view == view]
        return tuple(sorted(found, key=suitability) if len(found) > 1 else found)

    @property
    def missing_views(self) -> tuple[str, ...]:
        """Those of `labels.VIEWS` that no series shows."""
        return tuple(view for view in VIEWS if not self.by_view(view))

    def series_by_id(self, series_id: str) -> Series | None:
        """The series of this id, None when the study does not hold it."""
        return next((s for s in self.series if s.series_id == str(series_id)), None)

    def _repr_html_(self) -> str:
        rows = [(s.series_id, s.view or "none", len(s.stacks), s.n_slices, s.description) for s in self.series]
        issues = list(map(str, self.all_issues))
        pictures = []
        for view in VIEWS:
            for series in self.by_view(view)[:1]:
                axes = (INFERIOR, POSTERIOR, LEFT) if view == AXIAL_T2 else (LEFT, INFERIOR, POSTERIOR)
                stack = series.stacks[0]
                pictures.append((stack_thumbnail(stack.pixels, stack.geometry, axes), f"a slice of {view}"))
        head = ("series", "view", "stacks", "slices", "described as")
        return card(f"study {self.study_id}", head, rows, notes=issues, pictures=pictures)
