"""What a study is once it has been read: its series, by view."""

from __future__ import annotations

from dataclasses import dataclass

from ..dicom.series import Series
from ..errors import DataError, Issue
from ..geometry import INFERIOR, LEFT, POSTERIOR
from ..labels import AXIAL_T2, VIEWS
from ..notebook_html import card, stack_thumbnail


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
        """Series of one of `labels.VIEWS`, the one with most slices first; empty when the view is missing."""
        if view not in VIEWS:
            raise DataError(f"view {view!r} is not known, expected one of {VIEWS}")
        return tuple(sorted((s for s in self.series if s.view == view), key=lambda s: -s.n_slices))

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
