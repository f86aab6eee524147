"""Why a prediction: how much each voxel of a crop contributes to it."""

from .attribution import StudyAttribution, attribution_maps

__all__ = ["StudyAttribution", "attribution_maps"]
