"""Correct the disc points of a study by hand: move one, rename all by a level, undo.

`PointEditor` is the state, usable and tested without a browser; `EditorControls` are the buttons around it. They need
ipywidgets alone; where ipyevents is installed too, a click on the picture places the chosen point.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError
from ..labels import LEVELS, SAGITTAL_T1, SAGITTAL_T2, level_title
from ..localization import DiscPoints
from ..localization.exchange import shift_levels
from .browser import FIRST_LEVEL, widgets_work
from .scene import SAGITTAL, Raster, Scene
from .style import LEVEL_COLORS

if TYPE_CHECKING:
    from ..studies.study import Study

STEPS_MM = (1, 5)
ARROWS = (("up", -1, 0), ("down", 1, 0), ("left", 0, -1), ("right", 0, 1))
"""Names of moves on the page, with how far down and to the right they go."""


def edit_points(
    study: Study, points: DiscPoints, *, synthetic: bool = False, size: tuple[int, int] = (560, 520)
) -> PointEditor:
    """Correct a study's disc points on its sagittal T2 slices (T1 where it has no T2).

    Put the editor last in a cell to get its buttons; without ipywidgets or a kernel it shows the picture alone.
    `editor.points` are the points as they stand, a `DiscPoints`. `size` is the picture's largest height and width in
    pixels. Raises `DataError` when the study has no sagittal series, or the points are another study's.
    """
    return PointEditor(study, points, synthetic=synthetic, size=size)


class PointEditor:
    """The points of one study while they are corrected, and the slices they are shown on.

    `points` are the points as they stand; levels are 0 to 4, places LPS mm. A level that was placed by hand has
    confidence 1 and no flag; a place outside of the series is moved to its border.
    """

    def __init__(
        self, study: Study, points: DiscPoints, *, synthetic: bool = False, size: tuple[int, int] = (560, 520)
    ):
        if points.study_id != study.study_id:
            raise DataError(f"study {study.study_id}: given the points of study {points.study_id}")
        series = (study.by_view(SAGITTAL_T2) or study.by_view(SAGITTAL_T1))[:1]
        if not series:
            raise DataError(f"study {study.study_id}: no sagittal series to correct the points on")
        self._scene = Scene(replace(study, series=tuple(series)), points, size=size, synthetic=synthetic)
        self.pile = self._scene.piles[SAGITTAL][0]
        self._history = [points]

    @property
    def points(self) -> DiscPoints:
        """The points as they stand."""
        return self._history[-1]

    def place(self, level: int, point: np.ndarray) -> DiscPoints:
        """Set the point of a level to LPS mm (3,). Raises `DataError` where its neighbour lies."""
        places, confidence, flags = self.points.points.copy(), self.points.confidence.copy(), list(self.points.flags)
        places[level], confidence[level], flags[level] = self._inside(np.asarray(point, dtype=float)), 1.0, ""
        return self._keep(replace(self.points, points=places, confidence=confidence, flags=flags, source="corrected"))

    def place_on_slice(self, level: int, index: int, pixel: tuple[float, float] | None = None) -> DiscPoints:
        """Set the point of a level to a pixel (x, y) of the picture of a slice, default: where it is, on that slice."""
        raster = self.draw(index)
        xy, _ = raster.plane.project(self.points.points[level])
        x, y = raster.millimetres(pixel) if pixel is not None else xy
        return self.place(level, raster.plane.origin + x * raster.plane.right + y * raster.plane.down)

    def nudge(self, level: int, index: int, *, down: float = 0.0, right: float = 0.0) -> DiscPoints:
        """Move the point of a level by mm along the page of a slice; its distance from the slice stays."""
        plane = self.pile.image(index)
        return self.place(level, self.points.points[level] + down * plane.down + right * plane.right)

    def shift(self, by: int) -> DiscPoints:
        """Rename all points by so many levels: with 1 that of L1/L2 becomes that of L2/L3."""
        return self._keep(shift_levels(self.points, by))

    def undo(self) -> DiscPoints:
        """Take the last correction back; nothing happens when there is none."""
        if len(self._history) > 1:
            self._history.pop()
        self._scene.discs = self.points
        return self.points

    def slice_of(self, level: int) -> int:
        """The slice on which the point of a level lies."""
        return self._scene.index_of_level(SAGITTAL, 0, level)

    def draw(self, index: int, level: int | None = None) -> Raster:
        """A slice with the points, a ring around that of a chosen level."""
        raster = self._scene.draw(SAGITTAL, 0, index)
        if level is not None:
            at, _ = raster.project(self.points.points[level])
            raster.dot(at, LEVEL_COLORS[level], radius=9, filled=False)
        return raster

    def _keep(self, points: DiscPoints) -> DiscPoints:
        self._history.append(points)
        self._scene.discs = self.points
        return self.points

    def _inside(self, point: np.ndarray) -> np.ndarray:
        """The point, or the nearest voxel of the series where it lies beyond; nan is refused by `DiscPoints`."""
        geometries = [stack.geometry for stack in self.pile.series.stacks]
        voxels = [geometry.world_to_voxel(point) for geometry in geometries]
        within = [
            geometry.voxel_to_world(np.clip(voxel, 0, np.array([len(geometry), *geometry.shape]) - 1))
            for geometry, voxel in zip(geometries, voxels, strict=True)
        ]
        return min(within, key=lambda place: float(np.linalg.norm(place - point)))

    def _repr_mimebundle_(self, **kwargs) -> dict:
        picture = self.draw(self.slice_of(FIRST_LEVEL)).png()
        data = {"text/plain": f"points of study {self.points.study_id}: {self.points.source}"}
        if widgets_work():
            bundle = EditorControls(self).box._repr_mimebundle_(**kwargs)
            data |= bundle[0] if isinstance(bundle, tuple) else bundle
        return data | {"image/png": base64.b64encode(picture).decode("ascii")}


class EditorControls:
    """The widgets of an editor, all in `box`: `levels` chooses the point that the `buttons`, by name, move; `slider`
    the slice in `picture`; `status` says where the point is, or why it could not be moved."""

    def __init__(self, editor: PointEditor):
        import ipywidgets as w

        self.editor = editor
        titles = [(level_title(level), number) for number, level in enumerate(LEVELS)]
        self.levels = w.ToggleButtons(options=titles, value=FIRST_LEVEL, style={"button_width": "64px"})
        self.slider = w.IntSlider(editor.slice_of(FIRST_LEVEL), 0, len(editor.pile) - 1, description="slice")
        self.picture, self.status = w.Image(format="png"), w.Label()
        moves = {
            f"{name} {step} mm": (lambda down=down * step, right=right * step: self._nudge(down, right))
            for name, down, right in ARROWS
            for step in STEPS_MM
        }
        moves["onto this slice"] = lambda: editor.place_on_slice(self.levels.value, self.slider.value)
        moves |= {"all one level down": lambda: editor.shift(1), "all one level up": lambda: editor.shift(-1)}
        moves["undo"] = editor.undo
        self.buttons = {name: w.Button(description=name, layout=w.Layout(width="136px")) for name in moves}
        for name, move in moves.items():
            self.buttons[name].on_click(lambda _button, move=move: self._apply(move))
        self.levels.observe(self._level_chosen, "value")
        self.slider.observe(self._draw, "value")
        pairs = list(self.buttons.values())
        rows = [w.HBox(pairs[n : n + 2]) for n in range(0, len(pairs), 2)]
        self.box = w.VBox([self.levels, w.HBox([w.VBox([self.picture, self.slider]), w.VBox([*rows, self.status])])])
        if find_spec("ipyevents") is not None:
            from ipyevents import Event

            self._clicks = Event(source=self.picture, watched_events=["click"])
            self._clicks.on_dom_event(self.clicked)
        self._draw()

    def clicked(self, event: dict) -> None:
        """Place the chosen point where the picture was clicked (`dataX` and `dataY`, pixels of the picture)."""
        at = event["dataX"], event["dataY"]
        self._apply(lambda: self.editor.place_on_slice(self.levels.value, self.slider.value, at))

    def _nudge(self, down: float, right: float) -> None:
        self.editor.nudge(self.levels.value, self.slider.value, down=down, right=right)

    def _apply(self, move) -> None:
        try:
            move()
        except DataError as error:
            self.status.value = str(error)
        else:
            self._draw()

    def _level_chosen(self, _change) -> None:
        self.slider.value = self.editor.slice_of(self.levels.value)
        self._draw()

    def _draw(self, _change=None) -> None:
        level, points = self.levels.value, self.editor.points
        self.picture.value = self.editor.draw(self.slider.value, level).png()
        place = ", ".join(f"{x:.1f}" for x in points.points[level])
        self.status.value = f"{level_title(LEVELS[level])}: {place} mm {points.flags[level]}"
