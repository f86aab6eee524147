"""A 3D region around each disc from all three views, in one anatomical orientation, and the cache of many studies."""

from .cache import CropCache, build_crop_cache
from .extraction import CropSpec, StudyCrops, extract_crops

__all__ = ["CropCache", "CropSpec", "StudyCrops", "build_crop_cache", "extract_crops"]
