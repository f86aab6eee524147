"""Protocols: planes, matrices, field of view, sequence and coil of every series, sampled as hospitals choose them.

Profile `demo` is small enough for a notebook on two cores; `rsna` has the matrices and slice counts of the
competition's studies. `randomise=True` leaves reality behind, for training networks that must also work on real scans.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from ..errors import DataError
from ..geometry import INFERIOR, LEFT, POSTERIOR
from ..labels import AXIAL_T2, N_LEVELS, SAGITTAL_T1, SAGITTAL_T2, VIEWS
from .anatomy import Body
from .imperfections import sample_contrast, sample_imperfections, sample_localizer_contrast
from .signal import Sequence

PROFILES = ("demo", "rsna")


@dataclass(frozen=True)
class Block:
    """Parallel slices: `center` is the middle of the block (LPS mm), slices follow the normal every `step_mm`."""

    center: np.ndarray
    row_cosine: np.ndarray
    column_cosine: np.ndarray
    n_slices: int
    step_mm: float

    @property
    def normal(self) -> np.ndarray:
        """Row direction cross column direction."""
        return np.cross(self.row_cosine, self.column_cosine)

    @property
    def offsets(self) -> np.ndarray:
        """mm of each slice from the center along the normal."""
        return (np.arange(self.n_slices) - (self.n_slices - 1) / 2) * self.step_mm


@dataclass(frozen=True)
class Protocol:
    """Everything that decides how a series looks."""

    view: str  # one of `labels.VIEWS`
    blocks: tuple[Block, ...]
    fov_mm: tuple[float, float]  # height and width
    acquisition_matrix: tuple[int, int]  # rows and columns measured
    reconstruction_matrix: tuple[int, int]  # and of the image
    thickness_mm: float
    sequence: Sequence
    signal: np.ndarray  # (N_TISSUES,) see `signal.tissue_signal`
    noise: float  # standard deviation of either channel, relative to the brightest common tissue near the coil
    coil_depth_mm: float  # depth below the back at which its sensitivity has halved; infinite for a body coil
    coil_centre: np.ndarray  # (3,) LPS mm, on the skin of the back
    coil_length_mm: float
    saturation_mm: float = float("inf")  # how far in front of the spine a saturation band begins; infinite for none
    saturation_floor: float = 0.3  # what the band leaves of the signal
    ghost: float = 0.0  # strength of pulsation ghosts
    phase_axis: int = 0  # of ghosts and folding: 0 down the image, 1 across
    ghost_shift: float = 1 / 3  # distance of ghosts as a share of the image
    fold: float = 0.0  # share of the image over which anatomy from outside folds in
    apodised: bool = True  # whether k-space is weighted against ringing
    blur: float = 0.0  # further loss of detail, 0 to 1
    border: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # empty shares above, below, left, right
    metal: tuple[tuple[np.ndarray, float], ...] = ()  # LPS mm of implants and the radius of the void around each
    bias: np.ndarray = field(default_factory=partial(np.zeros, 6))  # smooth field along x, y, z and squares, per 100 mm
    grain: float = 1.0  # strength of the tissues' own texture
    gain: float = 1000.0  # stored value of a signal of 1
    subslices: int = 2  # averaged over the slice thickness


def sample_protocols(
    body: Body,
    rng: np.random.Generator,
    profile: str = "demo",
    *,
    views: tuple[str, ...] = (SAGITTAL_T2, SAGITTAL_T1, AXIAL_T2),
    randomise: bool = False,
) -> list[Protocol]:
    """One protocol per wanted view (repeat a view for a second series), all of one examination; when `randomise`d with
    contrasts, fields of view, noise and artefacts far beyond reality."""
    if profile not in PROFILES:
        raise DataError(f"unknown phantom profile {profile!r}, expected one of {PROFILES}")
    for view in views:
        if view not in VIEWS:
            raise DataError(f"unknown view {view!r}, expected one of {VIEWS}")
    tesla = rng.choice([1.5, 3.0], p=[0.6, 0.4])
    return [(_axial if v == AXIAL_T2 else _sagittal)(body, rng, profile, v, float(tesla), randomise) for v in views]


def localizer_protocol(
    body: Body, rng: np.random.Generator, *, pixel_mm: float = 1.5, n_slices: int = 5, randomise: bool = True
) -> Protocol:
    """One sagittal series of few slices at low resolution: quick material for training a localizer. Randomised, the
    field of view is 180 to 420 mm and often not square, holds the five discs, and may lie up to 40 mm beside the canal;
    else it is as in a hospital but for resolution and size."""
    if not randomise:
        return _plain_localizer_protocol(body, rng, pixel_mm, n_slices)
    height = rng.uniform(180, 420)
    width = height * rng.uniform(0.6, 1.0) if rng.random() < 0.4 else height
    if rng.random() < 0.1:
        height, width = width, height
    step = rng.uniform(3, 6)
    block, height = _localizer_block(body, rng, (height, width), n_slices, step)
    rows, columns = (max(32, round(fov / pixel_mm / 8) * 8) for fov in (height, width))
    contrast = sample_localizer_contrast(rng, float(rng.choice([1.5, 3.0])))
    coarse = rng.uniform(0.6, 1.0) if rng.random() < 0.3 else 1.0
    measured = (rows, int(columns * coarse) // 2 * 2) if rng.random() < 0.5 else (int(rows * coarse) // 2 * 2, columns)
    return _protocol(
        body, rng, SAGITTAL_T2, (block,), (height, width), measured, (rows, columns), contrast,
        randomise=True, thickness_mm=step * rng.uniform(0.7, 1.0), subslices=1,
    )  # fmt: skip


def _plain_localizer_protocol(body: Body, rng: np.random.Generator, pixel_mm: float, n_slices: int) -> Protocol:
    fov = rng.uniform(200, 400)
    step = float(np.clip(rng.normal(4.5, 0.4), 3.5, 6))
    view = SAGITTAL_T1 if rng.random() < 0.35 else SAGITTAL_T2
    block = _sagittal_block(body, rng, fov, n_slices, step)
    if rng.random() < 0.3:  # the lateral slices of a usual series, which hold no canal
        block = replace(block, center=block.center + rng.uniform(-35, 35) * block.normal)
    contrast = sample_contrast(rng, view, float(rng.choice([1.5, 3.0])), randomise=False)
    matrix = (max(32, round(fov / pixel_mm / 8) * 8),) * 2
    return _protocol(
        body, rng, view, (block,), (fov, fov), matrix, matrix, contrast,
        randomise=False, thickness_mm=0.88 * step, subslices=1,
    )  # fmt: skip


def _protocol(
    body: Body, rng: np.random.Generator, view: str, blocks: tuple[Block, ...], fov_mm: tuple[float, float],
    measured: tuple[int, int], reconstructed: tuple[int, int], contrast: tuple[Sequence, np.ndarray], *,
    thickness_mm: float, randomise: bool, **settings,
) -> Protocol:  # fmt: skip
    """A protocol whose imperfections are drawn last; no empty border of a sagittal series covers the canal's points."""
    imperfections = sample_imperfections(body, rng, randomise=randomise)
    if view != AXIAL_T2 and "border" in imperfections:
        offset = body.truth.canal - blocks[0].center
        down, across = (
            offset @ blocks[0].column_cosine / fov_mm[0] + 0.5,
            offset @ blocks[0].row_cosine / fov_mm[1] + 0.5,
        )
        room = np.array([down.min(), 1 - down.max(), across.min(), 1 - across.max()]) - 0.03
        imperfections["border"] = tuple(np.clip(imperfections["border"], 0, np.maximum(room, 0)).tolist())
    sequence, signal = contrast
    return Protocol(
        view, blocks, fov_mm, measured, reconstructed, thickness_mm, sequence, signal, **settings, **imperfections
    )


def _localizer_block(
    body: Body, rng: np.random.Generator, fov: tuple[float, float], n_slices: int, step: float, farthest_mm: float = 40
) -> tuple[Block, float]:
    """A near-sagittal block anywhere around the five discs, all of which it holds, and the height that this takes."""
    canal = body.truth.canal
    oblique = rng.random() < 0.4
    lean = _lean(canal) * rng.choice([0.0, 0.8])
    turns = np.clip(rng.normal([lean, 0, 0], [6, 6, 6] if oblique else [1, 2, 1]), -12, 12)
    row, column = _turned_sagittal(turns)
    down, across = (canal - canal[2]) @ column, (canal - canal[2]) @ row
    height, width = max(fov[0], float(np.ptp(down)) + 16), fov[1]
    # Half as hospitals place them, half anywhere.
    usual = rng.random(2) < 0.5
    at = np.where(usual, rng.normal([0.524, 0.559], [0.05, 0.06]), rng.uniform([0.33, 0.15], [0.67, 0.85]))
    middle_down = np.clip((0.5 - at[0]) * height, down.max() + 6 - height / 2, down.min() - 6 + height / 2)
    slack = np.maximum(width / 2 - 10, 1)
    middle_across = np.clip(
        (0.5 - at[1]) * width, across.max() - slack, max(across.min() + slack, across.max() - slack)
    )
    aside = rng.normal(0, 2.5) if rng.random() < 0.7 else rng.uniform(-farthest_mm, farthest_mm)
    centre = canal[2] + middle_down * column + middle_across * row
    normal = np.cross(row, column)
    centre = centre + ((canal.mean(0) - centre) @ normal + aside) * normal
    return Block(centre, row, column, n_slices, step), height


def _lean(canal: np.ndarray) -> float:
    """Degrees by which the line from L5/S1 to L1/2 leans to the patient's left."""
    return np.degrees(np.arctan2(canal[0, 0] - canal[4, 0], canal[0, 2] - canal[4, 2]))


def _turned_sagittal(turns: Iterable[float]) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of sagittal slices, turned by degrees about y, then z, then x."""
    row, column = POSTERIOR, INFERIOR
    for axis, turn in zip(np.eye(3)[[1, 2, 0]], turns, strict=False):
        row, column = _rotated(row, axis, turn), _rotated(column, axis, turn)
    return row, column


def _rotated(vector: np.ndarray, axis: np.ndarray, degrees: float) -> np.ndarray:
    """A vector turned about a unit axis (Rodrigues)."""
    a = np.radians(degrees)
    return vector * np.cos(a) + np.cross(axis, vector) * np.sin(a) + axis * (axis @ vector) * (1 - np.cos(a))


def _sagittal_block(body: Body, rng: np.random.Generator, fov: float, n_slices: int, step: float) -> Block:
    """Slices along the spine, its canal's middle near (0.56, 0.52) of the image as in the competition's set."""
    canal = body.truth.canal
    # Radiographers turn the slices along a scoliotic spine.
    row, column = _turned_sagittal([np.clip(0.8 * _lean(canal) + rng.normal(0, 1.0), -12, 12), rng.normal(0, 2.0)])
    at = np.clip(rng.normal([0.559, 0.524], [0.035, 0.035]), 0.35, 0.7)
    centre = canal.mean(0) + (0.5 - at[0]) * fov * row + (0.5 - at[1]) * fov * column
    return Block(centre + rng.normal(0, 1.5) * np.cross(row, column), row, column, n_slices, step)


def _sagittal(body: Body, rng: np.random.Generator, profile: str, view: str, tesla: float, randomise: bool) -> Protocol:
    is_t1 = view == SAGITTAL_T1
    if randomise:
        fov = rng.uniform(180, 420)
    else:
        fov = float(np.clip(rng.normal(290, 24) * (0.85 + 0.15 * body.person.stature), 240, 390))
    if profile == "demo":
        n_slices = int(rng.integers(13, 16))
        reconstructed = int(rng.choice([192, 224, 256]))
        measured = min(reconstructed, int(rng.choice([176, 192, 208])))
        step = rng.uniform(4.6, 5.2)
    else:
        n_slices = int(np.clip(round(rng.normal(17.5 if is_t1 else 18, 2.2)), 11, 29))
        weights = [0.41, 0.22, 0.20, 0.10, 0.07] if is_t1 else [0.28, 0.24, 0.24, 0.16, 0.08]
        reconstructed = int(rng.choice([512, 384, 320, 448, 640] if is_t1 else [512, 320, 448, 384, 640], p=weights))
        measured = min(reconstructed, int(rng.choice([256, 288, 320])))
        step = float(np.clip(rng.normal(4.5, 0.35), 3.6, 6.2))
    if randomise:
        block, fov = _localizer_block(body, rng, (fov, fov), n_slices, step, farthest_mm=12)
    else:
        block = _sagittal_block(body, rng, fov, n_slices, step)
    contrast = sample_contrast(rng, view, tesla, randomise=randomise)
    rows = measured if rng.random() < 0.7 else int(0.85 * measured) // 2 * 2
    return _protocol(
        body, rng, view, (block,), (fov, fov), (rows, measured), (reconstructed, reconstructed), contrast,
        randomise=randomise, thickness_mm=0.88 * step,
    )  # fmt: skip


def _axial(body: Body, rng: np.random.Generator, profile: str, view: str, tesla: float, randomise: bool) -> Protocol:
    fov = rng.uniform(140, 260) if randomise else float(np.clip(rng.normal(185, 18), 150, 240))
    demo = profile == "demo"
    step = float(np.clip(rng.normal(4.4, 0.3), 3.5, 6.0))
    if rng.random() < (0.7 if demo else 0.45):
        per_disc = int(rng.integers(3, 5) if demo else rng.integers(5, 8))
        blocks = tuple(_disc_block(body, rng, level, per_disc, step) for level in range(N_LEVELS))
    else:
        blocks = (_straight_block(body, rng, step, 22 if demo else None),)
    if demo:
        reconstructed = int(rng.choice([192, 224, 256]))
        measured = min(reconstructed, int(rng.choice([160, 176, 192])))
    else:
        reconstructed = int(rng.choice([320, 512, 640, 384, 448], p=[0.35, 0.3, 0.12, 0.15, 0.08]))
        measured = min(reconstructed, int(rng.choice([224, 256, 288])))
    contrast = sample_contrast(rng, view, tesla, randomise=randomise)
    return _protocol(
        body, rng, view, blocks, (fov, fov), (measured, measured), (reconstructed, reconstructed), contrast,
        randomise=randomise, thickness_mm=0.88 * step,
    )  # fmt: skip


def _disc_block(body: Body, rng: np.random.Generator, level: int, n_slices: int, step: float) -> Block:
    """A few slices along one disc, tilted with it."""
    normal = body.truth.normal[level]
    lean = np.degrees(np.arcsin(np.clip(-normal[1], -1, 1))) * rng.uniform(0.8, 1.05) + rng.normal(0, 1.5)
    sideways = np.degrees(np.arctan2(normal[0], normal[2])) * 0.6
    row = _rotated(LEFT, POSTERIOR, sideways)
    column = _rotated(POSTERIOR, row, lean)
    at = 0.4 * body.truth.posterior[level] + 0.6 * body.truth.canal[level]
    return Block(at + np.append(rng.normal([0, 2], [4, 5]), 0), row, column, n_slices, step)


def _straight_block(body: Body, rng: np.random.Generator, step: float, n_slices: int | None) -> Block:
    """One block from above L1/2 to below L5/S1, tilted by the mean of the lower discs or not at all."""
    canal = body.truth.canal
    lean = rng.choice([0.0, 1.0]) * rng.uniform(0, 12)
    row, column = LEFT, _rotated(POSTERIOR, LEFT, lean)
    normal = np.cross(row, column)
    along = canal @ normal
    low, high = along.min() - 12 - rng.uniform(0, 10), along.max() + 10 + rng.uniform(0, 10)
    if n_slices is None:
        n_slices = int(np.ceil((high - low) / step)) + 1
    else:
        step = (high - low) / (n_slices - 1)
    middle = canal.mean(0)
    centre = middle + ((low + high) / 2 - middle @ normal) * normal
    return Block(centre + np.append(rng.normal([0, 2], [4, 5]), 0), row, column, n_slices, step)
