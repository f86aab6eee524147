"""Pictures of synthetic patients: their planes, levels, crops and grades."""

from __future__ import annotations

from dataclasses import replace

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from lumbar_utils import viz
from lumbar_utils.crops.extraction import extract_crops
from lumbar_utils.dicom.series import Series
from lumbar_utils.geometry import INFERIOR, LEFT, POSTERIOR
from lumbar_utils.labels import (
    AXIAL_T2,
    CONDITIONS,
    LEVELS,
    SAGITTAL_T1,
    SAGITTAL_T2,
    SEVERITIES,
    level_title,
    target_index,
)
from lumbar_utils.localization import DiscPoints
from lumbar_utils.phantom.protocol import Block
from lumbar_utils.studies.data import Study
from lumbar_utils.viz.images import draw_localized, localized_plane
from lumbar_utils.viz.planes import ImagePlane, draw_plane, justified_panels
from lumbar_utils.viz.style import LEVEL_COLORS, SEVERITY_COLORS, color, finish, new_figure, outline, theme

from .patients import FINE, example, patient, protocols_of, series_of

DEGREES = {"normal/mild": 0.3, "moderate": 1.5, "severe": 2.6}


def title() -> Figure:
    """A wide banner: the spine with its levels, and the crops of each level beside it."""
    study, discs, cut, *_ = example()
    name = {SAGITTAL_T2: "sagittal T2", AXIAL_T2: "axial T2", SAGITTAL_T1: "sagittal T1"}
    with mpl.rc_context(theme("dark")):
        width, height = 13.0, 4.9
        figure = new_figure(width, height)
        plane = around_the_spine(localized_plane(study, discs), discs)
        panel = figure.add_axes((0, 0, height * plane.aspect / width, 1))
        draw_localized(panel, plane, discs, None, None)
        start = height * plane.aspect + 0.42
        side = (height - 0.62) / 3 - 0.06
        figure.text(
            start / width, 1 - 0.1 / height, "lumbar_utils", va="top", fontsize=18, fontweight="bold", color="white"
        )
        words = "lumbar spine MRI, graded level by level: from DICOM to 25 x 3 probabilities"
        figure.text((start + 2.15) / width, 1 - 0.19 / height, words, va="top", fontsize=11, color=color("muted"))
        for row, (view, offset) in enumerate(((SAGITTAL_T2, 0.0), (AXIAL_T2, 0.0), (SAGITTAL_T1, 17.0))):
            for level in range(len(LEVELS)):
                x, y = start + level * (side + 0.06), height - 0.56 - (row + 1) * (side + 0.06)
                small = figure.add_axes((x / width, y / height, side / width, side / height))
                draw_plane(small, viz.crop_plane(cut, view, level, offset), window=(0.0, 1.05), letters=False)
                for spine in small.spines.values():
                    spine.set(visible=True, color=LEVEL_COLORS[level], lw=1.4)
                if row == 0:
                    small.text(
                        0.04,
                        0.96,
                        level_title(LEVELS[level]),
                        transform=small.transAxes,
                        ha="left",
                        va="top",
                        fontsize=9,
                        fontweight="bold",
                        color=LEVEL_COLORS[level],
                        path_effects=outline(),
                    )
            figure.text(
                (start - 0.09) / width,
                (y + side / 2) / height,
                name[view],
                rotation=90,
                ha="right",
                va="center",
                fontsize=10,
                color=color("muted"),
            )
        x = start + 5 * (side + 0.06) + 0.16
        _banner_grades(figure, x / width, width, height)
        return finish(figure, synthetic=True)


def around_the_spine(plane: ImagePlane, discs: DiscPoints) -> ImagePlane:
    """The part of a sagittal plane around the spine: 150 mm wide, as high as the image allows up to 235 mm."""
    xy, _ = plane.project(discs.points)
    left = int(max(0, (xy[:, 0].mean() - 85) / plane.spacing[1]))
    top = int(max(0, (xy[:, 1].min() - 42) / plane.spacing[0]))
    rows, columns = round(225 / plane.spacing[0]), round(150 / plane.spacing[1])
    image = plane.image[top : top + rows, left : left + columns]
    origin = plane.origin + top * plane.spacing[0] * plane.down + left * plane.spacing[1] * plane.right
    return ImagePlane(image, origin, plane.down, plane.right, plane.spacing)


def _banner_grades(figure: Figure, x: float, width: float, height: float) -> None:
    """The five conditions as a column of words with a severity bar, to the right of the crops."""
    words = ("spinal canal", "left foramen", "right foramen", "left recess", "right recess")
    shares = example()[4][[target_index(c, "l4_l5") for c in range(len(CONDITIONS))]]
    words_below = "as simulated readers grade it"
    figure.text(x, 1 - 0.88 / height, words_below, fontsize=8, color=color("muted"), va="top")
    figure.text(x, 1 - 0.62 / height, "L4/L5", fontsize=13, fontweight="bold", color=LEVEL_COLORS[3], va="top")
    for i, (word, share) in enumerate(zip(words, shares, strict=True)):
        y = 1 - (1.12 + 0.62 * i) / height
        figure.text(x, y, word, fontsize=10.5, color="white", va="top")
        panel = figure.add_axes((x, y - 0.40 / height, 1.9 / width, 0.15 / height))
        panel.axis("off")
        panel.set_xlim(0, 1)
        start = 0.0
        for p, shade in zip(share, SEVERITY_COLORS, strict=True):
            panel.barh(0, p, left=start, color=shade, height=1)
            start += p
    y = 1 - (1.12 + 0.62 * 5 + 0.08) / height
    for i, (word, shade) in enumerate(zip(SEVERITIES, SEVERITY_COLORS, strict=True)):
        figure.text(x, y - 0.2 * i / height, f"■ {word.lower()}", fontsize=9, color=shade, va="top")


def levels() -> Figure:
    """The five levels located on sagittal T2, with their boxes."""
    study, discs, cut, *_ = example()
    figure = viz.show_disc_points(study, discs, crops=cut, synthetic=True, width=6.0)
    figure.texts[0].set_text("The five disc levels on sagittal T2")
    return figure


def crops() -> Figure:
    """Five levels in three views with labels."""
    _, _, cut, labels, _ = example()
    figure = viz.show_crops(cut, labels=labels, synthetic=True, width=9.0)
    figure.texts[-2].set_text("What the network sees of one study")
    return figure


def phantom() -> Figure:
    """One level of one body, three grades, in the views in which each condition is read."""
    rows = (
        ("spinal canal", (0,), SAGITTAL_T2, 0.0),
        ("spinal canal", (0,), AXIAL_T2, 0.0),
        ("left foramen", (1,), SAGITTAL_T1, 17.0),
        ("both recesses", (3, 4), AXIAL_T2, 0.0),
    )
    planes = [
        [_graded(conditions, view, offset, d) for conditions, view, offset in [r[1:]] for d in DEGREES.values()]
        for r in rows
    ]
    with mpl.rc_context(theme("dark")):
        figure, axes = justified_panels([[1.0] * 3] * len(rows), width=6.6, left=1.25, header=0.58)
        for row, line, (name, _, view, _) in zip(planes, axes, rows, strict=True):
            for plane, panel in zip(row, line, strict=True):
                draw_plane(panel, plane, window=(0.0, 1.05), scale_mm=20 if panel is line[0] else None)
            box = line[0].get_position()
            words = f"{name}\n{view.replace('/STIR', '')}"
            figure.text(
                box.x0 - 0.012, (box.y0 + box.y1) / 2, words, ha="right", va="center", fontsize=9, linespacing=1.5
            )
        for panel, grade, shade in zip(axes[0], DEGREES, SEVERITY_COLORS, strict=True):
            box = panel.get_position()
            x = (box.x0 + box.x1) / 2
            figure.text(
                x, box.y1 + 0.006, grade, ha="center", va="bottom", color=shade, fontweight="bold", fontsize=10.5
            )
        return finish(figure, title="The same body at L4/L5, three grades", synthetic=True)


def _graded(conditions: tuple[int, ...], view: str, offset: float, degree: float) -> ImagePlane:
    body = patient(**{f"{CONDITIONS[c]}_l4_l5": degree for c in conditions})
    series = series_of(body, protocols_of(body)[view], "1")
    discs = DiscPoints("phantom", "1", body.truth.canal, np.ones(5), source="truth")
    cut = extract_crops(Study("phantom", (series,)), discs, FINE)
    return viz.crop_plane(cut, view, LEVELS.index("l4_l5"), offset)


def orientation() -> Figure:
    """Sagittal, coronal and axial planes of one body, where each cuts the others, and the axes of the frame."""
    body = patient()
    base = protocols_of(body, 288)[SAGITTAL_T2]
    middle = body.truth.centre[2]
    planes = {}
    for name, row, column, fov in (
        ("sagittal", POSTERIOR, INFERIOR, (270.0, 210.0)),
        ("coronal", LEFT, INFERIOR, (270.0, 270.0)),
        ("axial", LEFT, POSTERIOR, (210.0, 290.0)),
    ):
        centre = middle + {"sagittal": [0, 5, 0], "coronal": [0, 0, 0], "axial": [0, 15, 0]}[name]
        block = Block(np.asarray(centre, dtype=float), row, column, 1, 4.0)
        matrix = tuple(round(f / 0.9) for f in fov)
        protocol = replace(base, blocks=(block,), fov_mm=fov, acquisition_matrix=matrix, reconstruction_matrix=matrix)
        planes[name] = views_plane(series_of(body, protocol, "1"))
    shades = {"sagittal": "#ff6f91", "coronal": "#5fe0b7", "axial": "#7cc4ff"}
    with mpl.rc_context(theme("dark")):
        figure, axes = justified_panels([[p.aspect for p in planes.values()]], width=11.0, header=0.44, footer=1.0)
        for panel, (name, plane) in zip(axes[0], planes.items(), strict=True):
            draw_plane(panel, plane, caption=name.capitalize(), caption_color=shades[name], scale_mm=50, fontsize=10)
            for other, cutter in planes.items():
                line = plane.cut_by(cutter) if other != name else None
                if line is not None:
                    panel.plot(*line.T, color=shades[other], lw=1.3, ls=(0, (5, 3)), alpha=0.95)
            for spine in panel.spines.values():
                spine.set(visible=True, color=shades[name], lw=2.0)
        words = (
            "Patient coordinates (DICOM, LPS, mm):  x grows to the patient's Left,  y to the back (Posterior),  "
            "z to the head (Superior).\n"
            "R right   L left   A anterior (front)   P posterior (back)   S superior (head)   I inferior (feet).   "
            "Dashed: where the other planes cut.\n"
            "Sagittal: the patient looks to the left.  Coronal and axial: the patient's right is on the left."
        )
        height = figure.get_size_inches()[1]
        figure.text(
            0.012, 0.88 / height, words, ha="left", va="top", fontsize=9.5, color=color("ink"), linespacing=1.75
        )
        return finish(figure, title="The three planes", synthetic=True)


def views_plane(series: Series) -> ImagePlane:
    stack = series.stacks[0]
    return ImagePlane.from_slice(stack.pixels[0], stack.geometry[0])
