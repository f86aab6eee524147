"""The report's pictures: grey images as `data:` URIs, and what is drawn over them in their pixels, for the page's SVG.

Images show what the network was given, at the scan's own resolution: each panel is one plane of a crop's box, sampled
anew from the series that the crop came from. Lines, letters and names are drawn by the page, so that they stay sharp
on paper and can be read aloud.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..crops.extraction import StudyCrops
from ..dicom.series import Stack
from ..geometry import OrientedGrid, sample_stack
from ..labels import LEVELS, SAGITTAL_T2, level_title
from ..localization import DiscPoints
from ..notebook_html import data_uri, resize, to_grey
from ..studies.study import Study
from ..viz.crops import CROP_WINDOW, MONTAGE_ROWS, nearest_index, target_offsets
from ..viz.images import DISC_LINE_MM, box_outline, localized_plane
from ..viz.planes import ImagePlane, grey_window

SAGITTAL_PIXELS = 720
"""Longer side of the overview; 60 KB as WebP."""
PANEL_PIXELS = 208
"""Side of a crop's panel: 0.34 mm a pixel at 70 mm, finer than any scan."""
ROWS = tuple((view, place_of, *name.split("\n")) for view, place_of, name in MONTAGE_ROWS)
"""What the montage of a notebook shows: view, the condition whose place it is, name, words for the place."""
MARGIN_MM = (55.0, 75.0, 55.0)
"""What the overview shows beyond the located points: above and below, in front, behind."""
SCALE_MM = 50


def overview(study: Study, discs: DiscPoints, crops: StudyCrops | None = None) -> dict:
    """The sagittal slice with the located discs, lengths and places in its pixels; `DataError` without such a series.

    Keys: `uri`, `width`, `height`, `view`, `letters` (edge to letter), `scale` (of `SCALE_MM`), and `levels`: for each
    its `point`, the `front` end of its line, the place of its `label`, and `box`, the outline of its crop (or None).
    """
    plane = localized_plane(study, discs)
    points, _ = plane.project(discs.points)
    top, left, bottom, right = _frame(plane, points)
    pixels = plane.image[top:bottom, left:right]
    window = grey_window(pixels)
    height_mm, width_mm = (bottom - top) * plane.spacing[0], (right - left) * plane.spacing[1]
    scale = SAGITTAL_PIXELS / max(height_mm, width_mm)
    height, width = round(height_mm * scale), round(width_mm * scale)
    corner = np.array([(left - 0.5) * plane.spacing[1], (top - 0.5) * plane.spacing[0]])

    def place(world: np.ndarray) -> np.ndarray:
        return np.round((plane.project(world)[0] - corner) * scale, 1)

    forward = discs.forward()
    sources = crops.sources[SAGITTAL_T2] if crops is not None else [None] * len(LEVELS)
    levels = [
        {
            "level": level,
            "title": level_title(level),
            "point": place(point).tolist(),
            "front": place(point + DISC_LINE_MM * forward[i]).tolist(),
            "label": place(point - 11.0 * forward[i]).tolist(),
            "box": place(box_outline(crops.grid(SAGITTAL_T2, i))).tolist() if sources[i] is not None else None,
        }
        for i, (level, point) in enumerate(zip(LEVELS, discs.points, strict=True))
    ]
    return {
        "uri": data_uri(resize(to_grey(pixels, window), (height, width)), quality=84),
        "width": width,
        "height": height,
        "view": "sagittal T2 or STIR" if study.by_view(SAGITTAL_T2) else "sagittal T1",
        "letters": plane.letters(),
        "scale": round(SCALE_MM * scale, 1),
        "levels": levels,
    }


def panels(crops: StudyCrops, study: Study | None = None, maps: Mapping[str, np.ndarray] | None = None) -> list[dict]:
    """The crops as rows of panels, in the order of `ROWS`, at the resolution of the study they came from, if given.

    maps: attribution by view, (5, D, H, W), 0 to 1, in the shape of `crops.images`, to be drawn over the panels.

    Keys: `name`, `place`, `letters` (of the first level that is there), `scale` (share of the panel's width that is
    20 mm), `panels`: 5 of {level, title, uri, map, absent, hatched}. `uri` is None where `absent` says why; `hatched`
    where stripes mark what the scan does not show.
    """
    rows, offsets = [], target_offsets(crops)
    for view, place_of, name, place in ROWS:
        cells, letters = [], {}
        for i, level in enumerate(LEVELS):
            offset = 0.0 if place_of is None else float(offsets[place_of, i])
            offset = _offset_of_slice(crops, study, view, i, offset)
            cell = {"level": level, "title": level_title(level), "absent": "", "hatched": False}
            cell |= {"uri": None, "map": None}
            if not crops.covered[view][i].any():
                cell["absent"] = "not in the scan" if crops.covered[view].any() else "no series"
            else:
                plane = _sampled(crops, study, view, i, offset)
                letters = letters or plane.letters()
                cell["uri"] = data_uri(_hatched(plane), quality=80)
                cell["hatched"] = plane.covered is not None and not bool(plane.covered.all())
                if maps is not None and maps.get(view) is not None:
                    cell["map"] = data_uri(_heat(maps[view][i], nearest_index(crops, view, offset)), quality=70)
            cells.append(cell)
        share = 20.0 / crops.spec.extents[view][2]
        rows.append({"name": name, "place": place, "letters": letters, "scale": round(share, 4), "panels": cells})
    return rows


def _frame(plane: ImagePlane, points: np.ndarray) -> tuple[int, int, int, int]:
    """Rows and columns (top, left, bottom, right) of the part of a plane round points (n, 2) in mm."""
    rows, columns = plane.image.shape
    along, front, behind = MARGIN_MM
    low = np.floor((points.min(axis=0) - (front, along)) / plane.spacing[::-1])
    high = np.ceil((points.max(axis=0) + np.array([behind, along])) / plane.spacing[::-1])
    left, top = np.clip(low, 0, (columns - 1, rows - 1)).astype(int).tolist()
    right, bottom = np.clip(high, 1, (columns, rows)).astype(int).tolist()
    return (top, left, bottom, right) if bottom > top and right > left else (0, 0, rows, columns)


def _stack_of(crops: StudyCrops, study: Study | None, view: str, level: int) -> Stack | None:
    """The stack that a crop was cut from, when its study is there."""
    source = crops.sources[view][level]
    series = study.series_by_id(source.series_id) if study is not None and source is not None else None
    return series.stacks[source.stack] if series is not None and source.stack < len(series.stacks) else None


def _offset_of_slice(crops: StudyCrops, study: Study | None, view: str, level: int, offset: float) -> float:
    """mm from a crop's middle to the slice of the scan nearest to `offset`; `offset` itself where there is none."""
    stack, grid = _stack_of(crops, study, view, level), crops.grid(view, level)
    if stack is None:
        return offset
    place = grid.center + offset * grid.axes[0]
    aside = stack.geometry.offsets[stack.geometry.nearest_slice(place)] - place @ stack.geometry.normal
    there = abs(aside) <= stack.geometry.slice_spacing / 2  # and no slice was lost
    return offset + float(aside * (stack.geometry.normal @ grid.axes[0])) if there else offset


def _sampled(crops: StudyCrops, study: Study | None, view: str, level: int, offset: float) -> ImagePlane:
    """One plane of a crop's box, `offset` mm from its middle, as a grey image of `PANEL_PIXELS`; without the study the
    nearest one of the crop, intensities as there."""
    grid, stack = crops.grid(view, level), _stack_of(crops, study, view, level)
    index = nearest_index(crops, view, offset)
    own = np.asarray(crops.images[view][level][index], dtype=np.float32)
    shape = (PANEL_PIXELS, round(PANEL_PIXELS * grid.extent[2] / grid.extent[1]))
    if stack is not None:
        center = grid.center + offset * grid.axes[0]
        fine = OrientedGrid(center, grid.axes, (float(grid.spacing[0]), *grid.extent[1:]), (1, *shape))
        values, covered = sample_stack(stack.pixels, stack.geometry, fine.points())
        if covered.any():
            image = to_grey(values[0], grey_window(values))
            return ImagePlane.from_grid(image[None], fine, 0, covered)
    image = resize(to_grey(own, CROP_WINDOW), shape)
    seen = resize(255 * crops.covered[view][level][index].astype(np.uint8), shape) > 127
    fine = OrientedGrid(grid.center, grid.axes, grid.extent, (1, *shape))
    return ImagePlane.from_grid(image[None], fine, 0, seen[None])


def _hatched(plane: ImagePlane) -> np.ndarray:
    """The plane's grey image, with quiet stripes where the scan shows nothing."""
    image = np.asarray(plane.image).round().astype(np.uint8)
    if plane.covered is None or plane.covered.all():
        return image
    i, j = np.indices(image.shape)
    return np.where(plane.covered, image, np.where(((i + j) // 6) % 2 == 0, 58, 42)).astype(np.uint8)


def _heat(volume: np.ndarray, index: int) -> np.ndarray:
    """A slice of a map as an amber layer that is the more opaque the larger it is, uint8 (rows, columns, 4)."""
    heat = np.clip(np.nan_to_num(np.asarray(volume[index], dtype=np.float32)), 0, 1)
    alpha = resize(np.round(200 * heat).astype(np.uint8), (PANEL_PIXELS, PANEL_PIXELS))
    color = np.broadcast_to(np.array([255, 176, 32], np.uint8), (*alpha.shape, 3))
    return np.concatenate([color, alpha[..., None]], axis=-1)
