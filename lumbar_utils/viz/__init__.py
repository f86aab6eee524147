"""Pictures and charts of everything that the library handles. A `show_` function returns a matplotlib `Figure`.

`planes` knows where an image lies in the patient, `images` shows series, studies and located discs, `crops` the crops
and where in them a prediction comes from, `browser` scrolls a study in a notebook with what `scene` draws, in
`point_editor` disc points are corrected by hand.
`cohort` holds the charts of a data set, `localization` the localizer's quality, `training` the curves of a training,
`results` confusion, calibration, loss by target and scores beside each other, `error_analysis` agreement, subgroups and
the targets with the largest loss, `style` how all of it looks, in a dark or a light theme.
"""

from .browser import StudyViewer, browse
from .cohort import (
    show_co_occurrence,
    show_counts,
    show_label_frequencies,
    show_missing_labels,
    show_point_places,
    show_series_statistics,
    show_slice_order,
)
from .crops import crop_plane, show_attribution, show_crop_slices, show_crops
from .error_analysis import show_agreement, show_own_errors, show_subgroups, show_worst_cases
from .images import show_disc_points, show_localizations, show_series, show_study
from .localization import show_found_discs, show_localizer_error
from .planes import ImagePlane, draw_plane
from .point_editor import PointEditor, edit_points
from .results import show_ablation, show_confusion, show_loss_by_target, show_reliability, show_scores
from .scene import Raster, Scene
from .style import save, use_theme
from .training import LiveCurves, show_training_curves

__all__ = [
    "ImagePlane",
    "LiveCurves",
    "PointEditor",
    "Raster",
    "Scene",
    "StudyViewer",
    "browse",
    "crop_plane",
    "draw_plane",
    "edit_points",
    "save",
    "show_ablation",
    "show_agreement",
    "show_attribution",
    "show_co_occurrence",
    "show_confusion",
    "show_counts",
    "show_crop_slices",
    "show_crops",
    "show_disc_points",
    "show_found_discs",
    "show_label_frequencies",
    "show_localizations",
    "show_localizer_error",
    "show_loss_by_target",
    "show_missing_labels",
    "show_own_errors",
    "show_point_places",
    "show_reliability",
    "show_scores",
    "show_series",
    "show_series_statistics",
    "show_slice_order",
    "show_study",
    "show_subgroups",
    "show_training_curves",
    "show_worst_cases",
    "use_theme",
]
