"""What a notebook shows: objects as escaped tables and notes, grey images as `data:` URIs, and how far a loop is.

Colours are mixed into whatever the notebook's own are, so that light and dark themes can both be read.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape
from tqdm import tqdm

from .geometry import OrientedGrid, StackGeometry, anatomical_axes, sample_stack

WINDOW_PERCENTILES = (1.0, 99.5)
THUMBNAIL_PIXELS = 144

_LINE = "border-bottom:1px solid rgba(127,127,127,.35)"
_CELL = f"text-align:left;vertical-align:top;padding:2px 14px 2px 0;{_LINE}"
_BOX = "display:flex;flex-wrap:wrap;gap:8px 20px;align-items:flex-start;font-variant-numeric:tabular-nums"


def card(
    title: str,
    head: Sequence[str],
    rows: Sequence[Sequence],
    *,
    about: str = "",
    notes: Sequence[str] = (),
    pictures: Sequence[tuple[str, str]] = (),
) -> str:
    """One object as HTML: pictures, each (data URI, alternative text), beside a titled table with notes below it.

    `about` stands behind the bold title; the first cell of each row names it. Everything is escaped, but for
    `markupsafe.Markup`.
    """
    images = Markup("").join(
        Markup('<img src="{}" alt="{}" style="border-radius:4px">').format(uri, text) for uri, text in pictures
    )
    heads = _cells("th", head, 'scope="col" ')
    lines = [_cells("th", row[:1], 'scope="row" ') + _cells("td", row[1:]) for row in rows]
    body = Markup("").join(Markup("<tr>{}</tr>").format(line) for line in lines)
    listed = Markup("").join(Markup("<li>{}</li>").format(note) for note in notes)
    ending = Markup('<ul style="margin:6px 0;padding-left:18px">{}</ul>').format(listed) if notes else ""
    return str(
        Markup('<div style="{}">{}<div><b>{}</b> {}<table style="{}"><tr>{}</tr>{}</table>{}</div></div>').format(
            _BOX, images, title, about, "border-collapse:collapse;margin:4px 0", heads, body, ending
        )
    )


def tinted(text: str, colour: str, title: str = "") -> Markup:
    """Text on a background "r,g,b" mixed into the notebook's own, with a tooltip."""
    return Markup('<span style="background:rgba({},.3);padding:1px 5px;border-radius:3px" title="{}">{}</span>').format(
        colour, title, text
    )


def _cells(tag: str, cells: Sequence, attributes: str = "") -> Markup:
    pieces = (f'<{tag} {attributes}style="{_CELL}">{escape(cell)}</{tag}>' for cell in cells)
    return Markup("".join(pieces))


def data_uri(image: np.ndarray, *, quality: int = 82) -> str:
    """An image, uint8 (rows, columns) or (rows, columns, 4) with transparency, as a WebP `data:` URI."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(stream, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def to_grey(image: np.ndarray, window: tuple[float, float] | None = None) -> np.ndarray:
    """Intensities (rows, columns) to uint8; `window` becomes black and white, default: percentiles of the image."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = window or np.percentile(values, WINDOW_PERCENTILES)
    return np.round(255 * np.clip((values - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A uint8 image at (rows, columns) pixels, smoothly; for display only."""
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size[::-1], Image.Resampling.LANCZOS))


def stack_thumbnail(
    pixels: np.ndarray, geometry: StackGeometry, axes: Sequence[np.ndarray], *, largest: int = THUMBNAIL_PIXELS
) -> str:
    """The middle slice of a stack (n, rows, columns) as a small `data:` URI of `largest` pixels on its longer side.

    `axes` are anatomical directions (3,): through the slice, down the page, to the right of the page.
    """
    turned = anatomical_axes(geometry, axes)
    corners = np.array([[0, r, c] for r in (0, geometry.shape[0]) for c in (0, geometry.shape[1])], dtype=float)
    places = (geometry.voxel_to_world(corners) - geometry.center) @ turned[1:].T
    extent = np.ptp(places, axis=0)
    rows, columns = (max(8, round(largest * side / extent.max())) for side in extent)
    middle = geometry.center + turned[0] * float((geometry[len(geometry) // 2].position - geometry.center) @ turned[0])
    grid = OrientedGrid(middle, turned, (1.0, *extent), (1, rows, columns))
    values, _ = sample_stack(pixels, geometry, grid.points(), resolution=float(grid.spacing[1]))
    return data_uri(to_grey(values[0]), quality=70)


def notebook_shell():
    """The interactive shell when a notebook's kernel runs this, else None; IPython is not imported for the question."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell if getattr(shell, "kernel", None) is not None else None


def progress_bar(*args, **options) -> tqdm:
    """tqdm's bar for a terminal; in a notebook a line in an output of its own, which says in the end what was done."""
    return (_NotebookBar if notebook_shell() else tqdm)(*args, **options)


class _NotebookBar(tqdm):
    """Unlike the widgets of `tqdm.auto`, of which a saved notebook keeps a bar at 0 %."""

    def __init__(self, *args, **options):
        super().__init__(*args, gui=True, **options)  # so that tqdm itself writes nothing
        self._output = None

    def display(self, *_args, **_options):
        from IPython.display import display

        line = {"text/plain": str(self)}
        if self._output is None:
            self._output = display(line, raw=True, display_id=True)
        else:
            self._output.update(line, raw=True)

    def close(self):
        if not self.disable:
            self.bar_format = "{desc}: {n_fmt}/{total_fmt} {unit} in {elapsed}"
            self.display()
        super().close()
