"""A viewer for a notebook: sliders scroll a study's series, and the slice on one side is a line on the other.

It needs ipywidgets and a running kernel, as in Jupyter and on Kaggle, and nothing else: pictures travel as PNG. Where
either is absent, `browse` gives a figure of the key slices instead, and a notebook that is only read shows that too.
"""

from __future__ import annotations

import base64
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from ..labels import LEVELS, level_title
from ..notebook_html import notebook_shell
from .images import show_study
from .planes import ImagePlane
from .scene import PLANES, Scene
from .style import LEVEL_COLORS

if TYPE_CHECKING:
    from ..crops.extraction import StudyCrops
    from ..localization import DiscPoints
    from ..studies.study import Study

FIRST_LEVEL = 3
"""L4/L5, where most of the disease is, comes up first."""


def browse(
    study: Study,
    discs: DiscPoints | None = None,
    *,
    crops: StudyCrops | None = None,
    synthetic: bool = False,
    size: tuple[int, int] = (470, 440),
    static: bool | None = None,
) -> StudyViewer | Figure:
    """Scroll through a study: sagittal on the left, axial on the right, each with the line where the other cuts it.

    discs: their points, the lines of their planes, and buttons that jump to them; crops: the boxes that were cut out;
    size: largest height and width of each of the two pictures, in pixels; static: True for a figure of the key slices,
    False for the viewer, by default the viewer where it can work.
    """
    if static is None:
        static = not widgets_work()
    if static:
        return show_study(study, discs=discs, synthetic=synthetic)
    return StudyViewer(Scene(study, discs, crops, size=size, synthetic=synthetic))


def widgets_work() -> bool:
    """Whether ipywidgets is installed and a notebook's kernel runs this code."""
    return notebook_shell() is not None and find_spec("ipywidgets") is not None


class StudyViewer:
    """The widgets around a `Scene`; put it last in a cell to show it.

    `box` holds them all: `sliders`, `menus` and `pictures` by plane, "sagittal" and "axial" as far as the study has
    them, which choose the slice and the series and show it; `window` and `level`, in per cent of each series' own;
    `marks`, whether discs and boxes are drawn; and the five `buttons` of the levels.
    """

    def __init__(self, scene: Scene):
        import ipywidgets as w

        self.scene, self._held = scene, 0
        self.planes = tuple(plane for plane in PLANES if scene.piles[plane])
        narrow, wide = {"description_width": "62px"}, w.Layout(width=f"{scene.size[1]}px")
        self.menus, self.sliders, self.pictures = {}, {}, {}
        for plane in self.planes:
            piles = scene.piles[plane]
            series = [pile.series for pile in piles]
            views = [one.view or one.description or "unknown view" for one in series]
            names = [(f"{views[n]}  (series {one.series_id[-8:]})", n) for n, one in enumerate(series)]
            look = {"style": narrow, "layout": wide}
            self.menus[plane] = w.Dropdown(options=names, value=0, description="series", **look)
            start, last = scene.index_of_level(plane, 0, FIRST_LEVEL), len(piles[0]) - 1
            self.sliders[plane] = w.IntSlider(start, 0, last, description=plane, readout=False, **look)
            self.pictures[plane] = w.Image(format="png")
            self.menus[plane].observe(partial(self._series_chosen, plane), "value")
        look = {"style": narrow, "layout": w.Layout(width="230px")}
        self.window = w.IntSlider(100, 10, 250, 5, description="window, %", **look)
        self.level = w.IntSlider(50, 0, 150, 5, description="level, %", **look)
        self.marks = w.Checkbox(True, description="marks", indent=False, layout=w.Layout(width="80px"))
        for widget in (*self.sliders.values(), self.window, self.level, self.marks):
            widget.observe(self._draw, "value")
        self.buttons = []
        for number, level in enumerate(LEVELS):
            style = {"button_color": LEVEL_COLORS[number], "text_color": "#10161d", "font_weight": "bold"}
            look = {"style": style, "layout": w.Layout(width="64px"), "disabled": scene.discs is None}
            self.buttons.append(w.Button(description=level_title(level), **look))
            self.buttons[-1].on_click(lambda _button, number=number: self.jump(number))
        margin = w.Layout(margin="0 8px 0 0")
        sides = [w.VBox([self.menus[p], self.pictures[p], self.sliders[p]], layout=margin) for p in self.planes]
        self.box = w.VBox([w.HBox([*self.buttons, self.window, self.level, self.marks]), w.HBox(sides)])
        self._draw()

    def jump(self, level: int) -> None:
        """Show the disc of a level (0 to 4) on both sides."""
        with self._one_drawing():
            for plane in self.planes:
                number = self.menus[plane].value
                self.sliders[plane].value = self.scene.index_of_level(plane, number, level)

    def shown(self, plane: str) -> ImagePlane:
        """The slice that stands on one side."""
        return self.scene.piles[plane][self.menus[plane].value].image(self.sliders[plane].value)

    def _draw(self, _change=None) -> None:
        if self._held:
            return
        look = {"width": self.window.value, "level": self.level.value, "marks": self.marks.value}
        for plane in self.planes:
            other = next((self.shown(p) for p in self.planes if p != plane), None)
            at = self.menus[plane].value, self.sliders[plane].value
            self.pictures[plane].value = self.scene.draw(plane, *at, other, **look).png()

    def _series_chosen(self, plane: str, event) -> None:
        """Another series begins at the place of the one before."""
        before, pile = (self.scene.piles[plane][event[key]] for key in ("old", "new"))
        middle = before.image(self.sliders[plane].value).middle
        with self._one_drawing():
            self.sliders[plane].max = len(pile) - 1
            self.sliders[plane].value = int(pile.costs(middle[None]).argmin())

    @contextmanager
    def _one_drawing(self):
        """Draw once at the end, however many widgets change inside."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self._draw()

    def figure(self) -> Figure:
        """The key slices, as a figure that needs no kernel."""
        return show_study(self.scene.study, discs=self.scene.discs, synthetic=self.scene.synthetic)

    def _repr_mimebundle_(self, **kwargs) -> dict:
        bundle = self.box._repr_mimebundle_(**kwargs)
        data = dict(bundle[0] if isinstance(bundle, tuple) else bundle)
        # For whoever reads the notebook without a kernel.
        data["image/png"] = base64.b64encode(self.figure().png()).decode("ascii")
        return data
