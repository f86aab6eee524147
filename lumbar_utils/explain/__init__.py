"""Why a grade: how much each voxel of a crop has to do with it."""

from .attribution import StudyAttribution, explain

__all__ = ["StudyAttribution", "explain"]
