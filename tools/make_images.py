"""Make all pictures of the README and the notebooks from phantoms: `python tools/make_images.py [NAME ...]`.

No file is read but the shipped disc finder's weights; the same command gives the same pictures. Names: title,
orientation, architecture, levels, crops, phantom, localizer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib as mpl
import numpy as np
import pandas as pd
import pydicom
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lumbar_utils import views
from lumbar_utils.crops import CropSpec, StudyCrops, extract_crops
from lumbar_utils.dicom import Series, Stack, Study
from lumbar_utils.geometry import INFERIOR, LEFT, POSTERIOR
from lumbar_utils.labels import (
    AXIAL_T2,
    CONDITIONS,
    LEVELS,
    N_TARGETS,
    SAGITTAL_T1,
    SAGITTAL_T2,
    SEVERITIES,
    VIEWS,
    level_title,
    target_index,
)
from lumbar_utils.localizer import DiscLocalizer, DiscPoints, LocalizationError, evaluate_points, read_reference
from lumbar_utils.phantom.anatomy import Body, build_body
from lumbar_utils.phantom.cohort import generate_cohort
from lumbar_utils.phantom.disease import sample_person
from lumbar_utils.phantom.protocol import Block, Protocol, sample_protocols
from lumbar_utils.phantom.reader import class_probabilities
from lumbar_utils.phantom.scanner import acquire
from lumbar_utils.study import CompetitionFolder
from lumbar_utils.views.images import draw_localized, localized_plane, mark_discs
from lumbar_utils.views.planes import ImagePlane, draw_plane, justified_panels
from lumbar_utils.views.style import (
    FAMILY_COLORS,
    LEVEL_COLORS,
    SEVERITY_COLORS,
    color,
    finish,
    new_figure,
    outline,
    theme,
)

IMAGES = Path(__file__).resolve().parent.parent / "images"
SEED = 11
DEGREES = {"normal/mild": 0.3, "moderate": 1.5, "severe": 2.6}
LARGEST_BYTES = 600_000
UNSEEN_SEED = 607_001
"""Of no training of the disc finder."""
UNSEEN_STUDIES = 16
FINE = CropSpec(shapes={SAGITTAL_T2: (8, 112, 112), AXIAL_T2: (8, 112, 112), SAGITTAL_T1: (24, 112, 112)})


def main() -> None:
    pictures = {
        "title": title,
        "orientation": orientation,
        "architecture": architecture,
        "levels": levels,
        "crops": crops,
        "phantom": phantom,
        "localizer": localizer,
    }
    for name in sys.argv[1:] or pictures:
        if name not in pictures:
            sys.exit(f"unknown picture {name!r}, expected some of {', '.join(pictures)}")
        path = IMAGES / f"{name}.png"
        views.save(pictures[name](), path, dpi=120)
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            sys.exit(f"{path.name} has {size} bytes, more than {LARGEST_BYTES}")
        print(f"images/{path.name}  {size / 1000:.0f} kB")


def patient(**grades: float) -> Body:
    """A body whose degree of narrowing is 0.3 everywhere but where `grades` says, by target name."""
    degrees = np.full(N_TARGETS, 0.3)
    for target, degree in grades.items():
        condition, level = target.rsplit("_", 2)[0], "_".join(target.rsplit("_", 2)[1:])
        degrees[target_index(condition, level)] = degree
    person = sample_person(4, SEED)
    worn = np.array([0.1, 0.1, 0.2, 0.55, 0.45])
    person = replace(
        person,
        degrees=degrees,
        degeneration=worn,
        bulge_mm=np.array([0.3, 0.3, 0.5, 1.2, 0.8]),
        modic=np.zeros(5, dtype=int),
        listhesis_mm=np.zeros(5),
        haemangioma=-1,
        scoliosis_degrees=2.0,
        lordosis_degrees=48.0,
        sacral_slope_degrees=38.0,
        sac_scale=1.05,
        fat_mm=22.0,
        stature=1.0,
    )
    return build_body(person)


def clean(protocol: Protocol, matrix: int) -> Protocol:
    """The same protocol without artefacts and with little noise, at a given matrix."""
    return replace(
        protocol,
        acquired=(matrix, matrix),
        reconstructed=(round(matrix * 1.25), round(matrix * 1.25)),
        noise=0.012,
        ghost=0.0,
        bias=np.zeros(6),
        saturation_mm=float("inf"),
        coil_depth_mm=220.0,
        samples=3,
    )


def series_of(body: Body, protocol: Protocol, series_id: str) -> Series:
    stacks = []
    for geometry, pixels in acquire(body, protocol, np.random.default_rng(SEED)):
        numbers = tuple(range(1, len(geometry) + 1))
        files = tuple(f"{n}.dcm" for n in numbers)
        stacks.append(Stack(pixels.astype(np.float32), geometry, numbers, files))
    return Series("phantom", series_id, protocol.view, tuple(stacks))


def protocols_of(body: Body, matrix: int = 320) -> dict[str, Protocol]:
    drawn = sample_protocols(body, np.random.default_rng(SEED), "rsna", views=VIEWS)
    return {protocol.view: clean(protocol, matrix) for protocol in drawn}


@cache
def example() -> tuple[Study, DiscPoints, StudyCrops, np.ndarray, np.ndarray]:
    """A study with narrowing at L3/L4 to L5/S1: its points, crops, labels, and probabilities of readers' grades."""
    grades = {
        "spinal_canal_stenosis_l4_l5": 2.5,
        "spinal_canal_stenosis_l3_l4": 1.5,
        "left_neural_foraminal_narrowing_l5_s1": 2.4,
        "right_neural_foraminal_narrowing_l4_l5": 1.5,
        "left_subarticular_stenosis_l4_l5": 2.6,
        "right_subarticular_stenosis_l4_l5": 2.5,
        "right_subarticular_stenosis_l3_l4": 1.6,
    }
    body = patient(**grades)
    labels = np.zeros(N_TARGETS, dtype=int)
    for target, degree in grades.items():
        condition, level = target.rsplit("_", 2)[0], "_".join(target.rsplit("_", 2)[1:])
        labels[target_index(condition, level)] = int(degree)
    series = tuple(series_of(body, p, str(i + 1)) for i, p in enumerate(protocols_of(body).values()))
    study = Study("phantom", series)
    discs = DiscPoints("phantom", "1", body.truth.canal, np.ones(5), source="truth")
    return study, discs, extract_crops(study, discs, FINE), labels, class_probabilities(body.person.degrees)


def levels() -> Figure:
    """The five levels located on sagittal T2, with their boxes."""
    study, discs, cut, *_ = example()
    figure = views.show_disc_points(study, discs, crops=cut, synthetic=True, width=6.0)
    figure.texts[0].set_text("The five disc levels on sagittal T2")
    return figure


def crops() -> Figure:
    """Five levels in three views with labels."""
    _, _, cut, labels, _ = example()
    figure = views.show_crops(cut, labels=labels, synthetic=True, width=9.0)
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
        figure, axes = justified_panels([[1.0] * 3] * len(rows), width=6.6, left=1.25, row_gaps=[0.24, 0, 0, 0])
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
    return views.crop_plane(cut, view, LEVELS.index("l4_l5"), offset)


def localizer() -> Figure:
    """What the shipped disc finder finds on phantoms it has never seen: usual contrasts above, bent ones below."""
    finder = DiscLocalizer.shipped()
    found: dict[str, DiscPoints] = {}
    truth: dict[str, np.ndarray] = {}
    shown: dict[str, Study] = {}
    errors: dict[str, pd.DataFrame] = {}
    with TemporaryDirectory() as folder:
        for kind in ("usual", "randomised"):
            cohort = Path(folder) / kind
            options = {"seed": UNSEEN_SEED, "test_fraction": 0, "randomise": kind != "usual", "progress": False}
            generate_cohort(cohort, n_studies=UNSEEN_STUDIES, **options)
            known = read_reference(cohort / "truth" / "discs.csv")
            chosen: dict[str, Study] = {}
            names = []
            for series in sagittal_series(CompetitionFolder.open(cohort)):
                name = f"{kind} {series.study_id} {series.series_id}"
                names.append(name)
                truth[name] = known[series.study_id]
                try:
                    found[name] = finder.locate_series(series)
                except LocalizationError:
                    continue  # counted as not found
                # The first of each contrast, and the first three that are randomised, whatever their errors are.
                caption = contrast(cohort, series) if kind == "usual" else f"randomised {len(names)}"
                if len(chosen) < 3:
                    chosen.setdefault(caption, Study(name, (series,), ()))
            shown |= chosen
            errors[f"{kind} scans, {len(names)} series"] = evaluate_points(found, {name: truth[name] for name in names})
    names = [study.study_id for study in shown.values()]
    return views.show_found_discs(
        list(shown.values()),
        [found[name] for name in names],
        errors,
        truths=[truth[name] for name in names],
        captions=list(shown),
        title="The disc finder that ships, on phantoms it has never seen",
        synthetic=True,
    )


def sagittal_series(folder: CompetitionFolder) -> Iterator[Series]:
    """All sagittal series of a cohort, T1 and T2 alike."""
    for study_id in folder.study_ids("train"):
        yield from (series for series in folder.load_study(study_id).series if series.view != AXIAL_T2)


def contrast(cohort: Path, series: Series) -> str:
    """What a radiologist would call it: the headers tell T2 from STIR, the competition's tables do not."""
    path = next((cohort / "train_images" / series.study_id / series.series_id).glob("*.dcm"))
    header = pydicom.dcmread(path, stop_before_pixels=True)
    if series.view == SAGITTAL_T1:
        return "Sagittal T1"
    return "Sagittal STIR" if float(header.get("InversionTime") or 0) > 0 else "Sagittal T2"


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
        protocol = replace(base, blocks=(block,), fov_mm=fov, acquired=matrix, reconstructed=matrix)
        planes[name] = views_plane(series_of(body, protocol, "1"))
    shades = {"sagittal": "#ff6f91", "coronal": "#5fe0b7", "axial": "#7cc4ff"}
    with mpl.rc_context(theme("dark")):
        figure, axes = justified_panels([[p.aspect for p in planes.values()]], width=11.0, row_gaps=[0.1], footer=1.0)
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


def title() -> Figure:
    """A wide banner: the spine with its levels, and the crops of each level beside it."""
    study, discs, cut, *_ = example()
    name = {SAGITTAL_T2: "sagittal T2", AXIAL_T2: "axial T2", SAGITTAL_T1: "sagittal T1"}
    with mpl.rc_context(theme("dark")):
        width, height = 13.0, 4.9
        figure = new_figure(width, height)
        plane = _cropped(localized_plane(study, discs), discs)
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
                draw_plane(small, views.crop_plane(cut, view, level, offset), window=(0.0, 1.05), letters=False)
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


def _cropped(plane: ImagePlane, discs: DiscPoints) -> ImagePlane:
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


def architecture() -> Figure:
    """From DICOM to 25 x 3 probabilities, with real crops of a phantom in the place of each stack."""
    study, discs, cut, *_ = example()
    level = LEVELS.index("l4_l5")
    with mpl.rc_context(theme("light")):
        width, height = 13.0, 5.2
        figure = new_figure(width, height)
        canvas = figure.add_axes((0, 0, 1, 1))
        canvas.set_xlim(0, width)
        canvas.set_ylim(0, height)
        canvas.axis("off")
        plane = _cropped(localized_plane(study, discs), discs)
        panel = figure.add_axes((0.3 / width, 0.75 / height, 3.4 * plane.aspect / width, 3.4 / height))
        draw_plane(panel, plane, letters=False)
        mark_discs(panel, plane, discs, small=True)
        x_boxes = 0.3 + 3.4 * plane.aspect
        _note(canvas, 0.3, 4.55, "1  Find the discs", "five canal points on sagittal T2,\nin patient millimetres")
        _note(canvas, x_boxes + 0.75, 4.55, "2  Cut them out", "one box per level and view, 1 of 5 shown")
        streams = (
            (SAGITTAL_T2, 0.0, "sagittal T2", "3 × 7 × 7 cm"),
            (AXIAL_T2, 0.0, "axial T2", "3 × 7 × 7 cm"),
            (SAGITTAL_T1, 17.0, "sagittal T1", "9 × 7 × 7 cm"),
        )
        x = x_boxes + 0.85
        for i, (view, offset, name, size) in enumerate(streams):
            y = 2.98 - 1.18 * i
            shade = FAMILY_COLORS[i]
            for k, shift in enumerate((0.16, 0.08, 0.0)):
                small = figure.add_axes(((x + shift) / width, (y + shift) / height, 0.92 / width, 0.92 / height))
                plane = views.crop_plane(cut, view, level, offset + (2 - k) * 4.0)
                draw_plane(small, plane, window=(0, 1.05), letters=False)
                for spine in small.spines.values():
                    spine.set(visible=True, color=shade, lw=1.2)
            canvas.text(x + 1.2, y + 0.62, name, fontsize=10.5, fontweight="bold", color=shade)
            canvas.text(x + 1.2, y + 0.38, size, fontsize=9, color=color("muted"))
            _arrow(canvas, (x_boxes + 0.08, 2.45), (x - 0.06, y + 0.46))
            _block(canvas, x + 2.75, y + 0.14, 1.75, 0.72, "3D ResNet18", shade)
            _arrow(canvas, (x + 2.25, y + 0.5), (x + 2.7, y + 0.5))
            _arrow(canvas, (x + 4.55, y + 0.5), (x + 5.22, 2.35))
        _note(canvas, x + 2.75, 4.55, "3  Read them", "three encoders, weights\nshared over the five levels")
        _block(canvas, x + 5.28, 1.55, 0.72, 1.6, "join\n+\nhead", "#5b6b7a")
        _arrow(canvas, (x + 6.04, 2.35), (x + 6.42, 2.35))
        _note(canvas, x + 5.28, 4.55, "4  Grade", "25 targets × 3 severities")
        _grid_of_grades(figure, example()[4], (x + 6.5) / width, 0.95 / height, 2.75 / width, 2.75 / height)
        words = "Pictures: a synthetic phantom; bars: how its simulated readers would grade it."
        figure.text(0.3 / width, 0.28 / height, words, fontsize=8.5, color=color("muted"))
        return figure


def _note(canvas, x: float, y: float, head: str, words: str) -> None:
    canvas.text(x, y + 0.3, head, fontsize=12.5, fontweight="bold", va="bottom")
    canvas.text(x, y + 0.22, words, fontsize=9, va="top", color=color("muted"), linespacing=1.4)


def _block(canvas, x: float, y: float, w: float, h: float, words: str, shade: str) -> None:
    style = "round,pad=0,rounding_size=0.1"
    canvas.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, facecolor=shade, edgecolor="none"))
    canvas.text(x + w / 2, y + h / 2, words, ha="center", va="center", color="white", fontsize=10.5, fontweight="bold")


def _arrow(canvas, start: tuple[float, float], end: tuple[float, float]) -> None:
    arrow = FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=11, color=color("muted"), lw=1.3, shrinkA=0, shrinkB=0
    )
    canvas.add_patch(arrow)


def _grid_of_grades(figure: Figure, shares: np.ndarray, x: float, y: float, w: float, h: float) -> None:
    """The 25 outputs as a table of stacked bars."""
    panel = figure.add_axes((x, y, w, h))
    for c in range(len(CONDITIONS)):
        for level in range(len(LEVELS)):
            start = 0.0
            for p, shade in zip(shares[target_index(c, level)], SEVERITY_COLORS, strict=True):
                panel.barh(c, 0.86 * p, left=level + start, height=0.62, color=shade)
                start += 0.86 * p
    panel.set_xlim(-0.05, 5)
    panel.set_ylim(4.6, -0.6)
    panel.set_xticks(np.arange(5) + 0.43, [level_title(v) for v in LEVELS], fontsize=8.5)
    panel.set_yticks([])
    panel.xaxis.tick_top()
    panel.tick_params(length=0)
    for spine in panel.spines.values():
        spine.set_visible(False)
    for c, name in enumerate(("canal", "foramen L", "foramen R", "recess L", "recess R")):
        panel.text(0, c - 0.36, name, fontsize=7.5, va="bottom", color=color("muted"))


if __name__ == "__main__":
    main()
