"""A viewer for a notebook: sliders scroll a study's series, and the slice on one side is a line on the other.

It needs ipywidgets and a running kernel, as in Jupyter and on Kaggle, and nothing else: pictures travel as PNG. Where
either is absent, `browse` gives a figure of the key slices instead, and a notebook that is only read shows that too.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from ..labels import LEVELS, N_LEVELS, level_title
from ..notebook_html import notebook_shell
from .images import show_study
from .planes import ImagePlane
from .scene import AXIAL, PLANES, SAGITTAL, Scene
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

    Parameters
    ----------
    study : Study
    discs : DiscPoints, optional
        Their points, the lines of their planes, and buttons that jump to them.
    crops : StudyCrops, optional
        The boxes that were cut out.
    synthetic : bool
        Stamps every picture.
    size : (int, int)
        Largest height and width of each of the two pictures, in pixels.
    static : bool, optional
        True for a figure of the key slices, False for the viewer; by default the viewer where it can work.
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

    Attributes
    ----------
    box : ipywidgets.VBox
        All of it.
    sliders, menus, pictures : dict `"sagittal"`, `"axial"` -> widget
        Which slice, which series, and the picture; only for planes that the study has.
    window, level : widgets
        In per cent of each series' own window.
    marks : widget
        Whether discs and boxes are drawn.
    buttons : list of five widgets
    """

    def __init__(self, scene: Scene):
        import ipywidgets as w

        self.scene = scene
        self.planes = tuple(plane for plane in PLANES if scene.piles[plane])
        self._held = 0
        narrow = {"description_width": "62px"}
        wide = w.Layout(width=f"{scene.size[1]}px")
        self.menus, self.sliders, self.pictures = {}, {}, {}
        for plane in self.planes:
            piles = scene.piles[plane]
            names = [(pile.name, n) for n, pile in enumerate(piles)]
            self.menus[plane] = w.Dropdown(options=names, value=0, description="series", style=narrow, layout=wide)
            start = scene.index_of_level(plane, 0, FIRST_LEVEL)
            self.sliders[plane] = w.IntSlider(
                start, 0, len(piles[0]) - 1, description=plane, style=narrow, layout=wide, readout=False
            )
            self.pictures[plane] = w.Image(format="png")
            self.sliders[plane].observe(self._draw, "value")
            self.menus[plane].observe(self._series_chosen(plane), "value")
        slim = w.Layout(width="230px")
        self.window = w.IntSlider(100, 10, 250, 5, description="window, %", style=narrow, layout=slim)
        self.level = w.IntSlider(50, 0, 150, 5, description="level, %", style=narrow, layout=slim)
        self.marks = w.Checkbox(True, description="marks", indent=False, layout=w.Layout(width="80px"))
        for widget in (self.window, self.level, self.marks):
            widget.observe(self._draw, "value")
        self.buttons = []
        for number in range(N_LEVELS):
            button = w.Button(
                description=level_title(LEVELS[number]),
                layout=w.Layout(width="64px"),
                style={"button_color": LEVEL_COLORS[number], "text_color": "#10161d", "font_weight": "bold"},
                disabled=scene.discs is None,
            )
            button.on_click(self._jump_to(number))
            self.buttons.append(button)
        sides = [
            w.VBox([self.menus[plane], self.pictures[plane], self.sliders[plane]], layout=w.Layout(margin="0 8px 0 0"))
            for plane in self.planes
        ]
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
        for plane in self.planes:
            other = AXIAL if plane == SAGITTAL else SAGITTAL
            self.pictures[plane].value = self.scene.draw(
                plane,
                self.menus[plane].value,
                self.sliders[plane].value,
                self.shown(other) if other in self.planes else None,
                width=self.window.value,
                level=self.level.value,
                marks=self.marks.value,
            ).png()

    def _series_chosen(self, plane: str) -> Callable:
        def change(event) -> None:
            piles, slider = self.scene.piles[plane], self.sliders[plane]
            before = piles[event["old"]].image(slider.value)
            middle = before.origin + before.down * before.size[0] / 2 + before.right * before.size[1] / 2
            with self._one_drawing():
                slider.max = len(piles[event["new"]]) - 1
                slider.value = piles[event["new"]].nearest(middle)

        return change

    def _jump_to(self, level: int) -> Callable:
        return lambda _button: self.jump(level)

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
