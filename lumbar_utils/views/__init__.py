"""Pictures and charts of everything that the library handles. Each function returns a matplotlib `Figure`.

`planes` knows where an image lies in the patient, `images` shows series, studies and located discs, `crops` the
crops, `cohort` the charts of a data set, `localization` the disc finder's quality, `training` the charts of training
and scoring, `style` how all of it looks.
"""

from .cohort import (
    show_co_occurrence,
    show_counts,
    show_label_frequencies,
    show_missing_labels,
    show_point_places,
    show_series_statistics,
    show_slice_order,
)
from .crops import crop_plane, show_condition, show_crop_slices, show_crops
from .images import show_disc_points, show_localizations, show_series, show_study
from .localization import show_found_discs
from .planes import ImagePlane, draw_plane
from .style import save
from .training import show_confusion, show_localizer_error, show_reliability, show_scores, show_training_curves

__all__ = [
    "ImagePlane",
    "crop_plane",
    "draw_plane",
    "save",
    "show_co_occurrence",
    "show_condition",
    "show_confusion",
    "show_counts",
    "show_crop_slices",
    "show_crops",
    "show_disc_points",
    "show_found_discs",
    "show_label_frequencies",
    "show_localizations",
    "show_localizer_error",
    "show_missing_labels",
    "show_point_places",
    "show_reliability",
    "show_scores",
    "show_series",
    "show_series_statistics",
    "show_slice_order",
    "show_study",
    "show_training_curves",
]
