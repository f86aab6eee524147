"""A 3D region around each disc from all three views, in one anatomical orientation, the cache of many studies, and the
25 points of a study, which are found on such regions."""

from .cache import CropCache, build_crop_cache
from .extraction import CropSpec, StudyCrops, extract_crops
from .target_points import TargetPoints, locate_targets

__all__ = ["CropCache", "CropSpec", "StudyCrops", "TargetPoints", "build_crop_cache", "extract_crops", "locate_targets"]
