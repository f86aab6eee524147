"""Quick pictures without matplotlib: a slice as RGB pixels with marks at their place in the patient, and as PNG bytes.

A step of a viewer has some 50 ms; a matplotlib figure takes several hundred. Here a slice is scaled, windowed, marked
and encoded in about ten.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from .planes import EDGES, ImagePlane, length_name

LETTER_COLOR = "#c8d2dc"


class Raster:
    """A slice on a canvas of pixels, on which patient coordinates have their place.

    `size` is the largest height and width in pixels, of which the slice fills one and keeps its proportions; `window`
    the intensities that become black and white. `image` is the canvas, an RGB `PIL.Image`; `scale` its pixels a mm.
    """

    def __init__(self, plane: ImagePlane, size: tuple[int, int], window: tuple[float, float]):
        height, width = plane.size
        self.plane = plane
        self.scale = min(size[0] / height, size[1] / width)
        low, high = window
        grey = np.clip((np.asarray(plane.image, dtype=np.float32) - low) * (255 / max(high - low, 1e-6)), 0, 255)
        shape = max(1, round(width * self.scale)), max(1, round(height * self.scale))
        scaled = Image.fromarray(grey.astype(np.uint8)).resize(shape, Image.Resampling.BILINEAR)
        if plane.covered is not None and not plane.covered.all():
            there = Image.fromarray(plane.covered.astype(np.uint8) * 255).resize(shape, Image.Resampling.NEAREST)
            scaled = Image.composite(scaled, Image.new("L", shape, 40), there)
        self.image = scaled.convert("RGB")
        self._pen = ImageDraw.Draw(self.image)

    def pixels(self, xy: np.ndarray) -> np.ndarray:
        """(x, y) mm on the plane, (..., 2), as `ImagePlane.project` gives them, to (x, y) pixels of the canvas."""
        # The middle of the slice's first pixel is half a pixel of the slice away from its edge, and so on the canvas.
        half = np.array([self.plane.spacing[1], self.plane.spacing[0]]) / 2
        return (np.asarray(xy, dtype=np.float64) + half) * self.scale - 0.5

    def millimetres(self, pixels: np.ndarray) -> np.ndarray:
        """The inverse of `pixels`."""
        half = np.array([self.plane.spacing[1], self.plane.spacing[0]]) / 2
        return (np.asarray(pixels, dtype=np.float64) + 0.5) / self.scale - half

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """LPS mm (..., 3) to (x, y) pixels (..., 2) and the distance from the plane in mm (...)."""
        xy, distance = self.plane.project(points)
        return self.pixels(xy), distance

    def line(self, ends: np.ndarray, color: str, width: int = 1) -> None:
        """A straight or broken line through pixels (n, 2)."""
        self._pen.line([tuple(end) for end in np.asarray(ends)], fill=color, width=width)

    def dot(self, at: np.ndarray, color: str, *, radius: float = 4, filled: bool = True) -> None:
        """A round mark at a pixel."""
        x, y = at
        box = (x - radius, y - radius, x + radius, y + radius)
        self._pen.ellipse(box, fill=color if filled else None, outline="black" if filled else color, width=1)

    def text(self, at: Sequence[float], text: str, color: str, *, size: int = 12, anchor: str = "lt") -> None:
        """Text with a dark rim; `anchor` as in PIL, `lt` for the left top corner."""
        place = float(at[0]), float(at[1])
        self._pen.text(place, text, fill=color, font=font(size), anchor=anchor, stroke_width=1, stroke_fill="black")

    def letters(self, size: int = 12) -> None:
        """What lies at each edge, in the patient."""
        width, height = self.image.size
        for edge, letter in self.plane.letters().items():
            x, y = EDGES[edge]
            at = 3 + x * (width - 6), 3 + y * (height - 6)
            anchor = ("lmr"[round(2 * x)]) + "tmb"[round(2 * y)]
            self.text(at, letter, LETTER_COLOR, size=size, anchor=anchor)

    def scale_bar(self, length: float, size: int = 11) -> None:
        """A bar of `length` mm at the right bottom."""
        width, height = self.image.size
        x, y = width - 8, height - 7
        self.line([(x - length * self.scale, y), (x, y)], "white", 3)
        self.text((x - length * self.scale / 2, y - 3), length_name(length), "white", size=size, anchor="mb")

    def png(self) -> bytes:
        """The canvas as a PNG file's bytes, compressed lightly because a viewer waits for it."""
        buffer = io.BytesIO()
        self.image.save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font of the figures, which comes with matplotlib, in pixels."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
