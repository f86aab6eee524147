"""What the radiographer sets: which planes, how fine, how long, with which coil; drawn as hospitals do it.

Profile `demo` is small enough for a notebook on two cores; `rsna` has the matrices and slice counts of the
competition's studies. `randomise=True` leaves reality behind, for training networks that must also work on real scans.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..errors import DataError
from ..labels import AXIAL_T2, N_LEVELS, SAGITTAL_T1, SAGITTAL_T2
from .anatomy import Body
from .signal import Sequence, random_signal, tissue_signal

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


@dataclass(frozen=True)
class Protocol:
    """Everything that decides how a series looks.

    Parameters
    ----------
    view : str
        One of `labels.VIEWS`.
    blocks : tuple of Block
    fov_mm : (float, float)
        Height and width of the field of view.
    acquired, reconstructed : (int, int)
        Rows and columns measured, and of the image.
    thickness_mm : float
    sequence : Sequence
    signal : ndarray, shape (N_TISSUES,)
        Signal per tissue, see `signal.tissue_signal`.
    noise : float
        Standard deviation of either channel, relative to the brightest common tissue near the coil.
    coil_depth_mm : float
        Depth below the back at which the coil's sensitivity has halved; infinite for a body coil.
    coil_centre : ndarray, shape (3,)
        LPS mm of the coil's middle, on the skin of the back.
    coil_length_mm : float
    saturation_mm : float
        How far in front of the spine a saturation band begins; infinite for none.
    ghost : float
        Strength of pulsation ghosts.
    bias : ndarray, shape (6,)
        Amplitudes of a further smooth bias field along x, y, z and their squares, per 100 mm.
    grain : float
        Strength of the tissues' own texture.
    gain : float
        Stored value of a signal of 1.
    samples : int
        Sub-slices averaged over the slice thickness.
    """

    view: str
    blocks: tuple[Block, ...]
    fov_mm: tuple[float, float]
    acquired: tuple[int, int]
    reconstructed: tuple[int, int]
    thickness_mm: float
    sequence: Sequence
    signal: np.ndarray
    noise: float
    coil_depth_mm: float
    coil_centre: np.ndarray
    coil_length_mm: float
    saturation_mm: float = float("inf")
    ghost: float = 0.0
    bias: np.ndarray = field(default_factory=lambda: np.zeros(6))
    grain: float = 1.0
    gain: float = 1000.0
    samples: int = 2

    @property
    def n_slices(self) -> int:
        """Slices of all blocks."""
        return sum(block.n_slices for block in self.blocks)


def sample_protocols(
    body: Body,
    rng: np.random.Generator,
    profile: str = "demo",
    *,
    views: tuple[str, ...] = (SAGITTAL_T2, SAGITTAL_T1, AXIAL_T2),
    randomise: bool = False,
) -> list[Protocol]:
    """One protocol per wanted view (repeat a view for a second series), all for one sitting of one body.

    Parameters
    ----------
    rng : Generator
        The only source of variation.
    profile : {"demo", "rsna"}
    views : tuple of str
        Of `labels.VIEWS`, in the order of the result.
    randomise : bool
        Contrasts, fields of view, noise and artefacts far beyond reality.

    Raises
    ------
    DataError
        For an unknown profile or view.
    """
    if profile not in PROFILES:
        raise DataError(f"unknown phantom profile {profile!r}, expected one of {PROFILES}")
    tesla = float(rng.choice([1.5, 3.0], p=[0.6, 0.4]))
    protocols = []
    for view in views:
        if view in (SAGITTAL_T1, SAGITTAL_T2):
            protocols.append(_sagittal(body, rng, profile, view, tesla, randomise))
        elif view == AXIAL_T2:
            protocols.append(_axial(body, rng, profile, tesla, randomise))
        else:
            raise DataError(f"unknown view {view!r}, expected one of {(SAGITTAL_T2, SAGITTAL_T1, AXIAL_T2)}")
    return protocols


def finder_protocol(body: Body, rng: np.random.Generator, *, pixel_mm: float = 1.5, n_slices: int = 5) -> Protocol:
    """One randomised sagittal series of few slices at low resolution: quick material for training a disc finder."""
    fov = float(rng.uniform(200, 400))
    matrix = max(32, round(fov / pixel_mm / 8) * 8)
    block = _sagittal_block(body, rng, fov, n_slices, float(rng.uniform(3.5, 5.5)), 0.07)
    sequence, signal = _contrast(rng, SAGITTAL_T2, 1.5, True)
    return Protocol(
        view=SAGITTAL_T2, blocks=(block,), fov_mm=(fov, fov), acquired=(matrix, matrix), reconstructed=(matrix, matrix),
        thickness_mm=4.0, sequence=sequence, signal=signal, samples=1, **_imperfections(body, rng, True),
    )  # fmt: skip


def _turned(vector: np.ndarray, axis: np.ndarray, degrees: float) -> np.ndarray:
    """A vector turned about a unit axis (Rodrigues)."""
    a = np.radians(degrees)
    return vector * np.cos(a) + np.cross(axis, vector) * np.sin(a) + axis * (axis @ vector) * (1 - np.cos(a))


def _sagittal_block(
    body: Body, rng: np.random.Generator, fov: float, n_slices: int, step: float, scatter: float
) -> Block:
    """Slices along the spine, its canal's middle near (0.56, 0.52) of the image as in the competition's set."""
    row, column = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0])
    canal = body.truth.canal
    # Radiographers turn the slices along a scoliotic spine.
    lean = np.degrees(np.arctan2(canal[0, 0] - canal[4, 0], canal[0, 2] - canal[4, 2]))
    turn_y = float(np.clip(0.8 * lean + rng.normal(0, 1.0), -12, 12))
    turn_z = float(rng.normal(0, 2.0))
    y_axis, z_axis = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])
    row, column = (_turned(_turned(vector, y_axis, turn_y), z_axis, turn_z) for vector in (row, column))
    at = np.clip(rng.normal([0.559, 0.524], [scatter, scatter]), 0.35, 0.7)
    centre = canal.mean(0) + (0.5 - at[0]) * fov * row + (0.5 - at[1]) * fov * column
    return Block(centre + rng.normal(0, 1.5) * np.cross(row, column), row, column, n_slices, step)


def _sagittal(body: Body, rng: np.random.Generator, profile: str, view: str, tesla: float, randomise: bool) -> Protocol:
    is_t1 = view == SAGITTAL_T1
    if randomise:
        fov = float(rng.uniform(200, 400))
    else:
        fov = float(np.clip(rng.normal(290, 24) * (0.85 + 0.15 * body.person.stature), 240, 390))
    if profile == "demo":
        n_slices = int(rng.integers(13, 16))
        reconstructed = int(rng.choice([192, 224, 256]))
        acquired = min(reconstructed, int(rng.choice([176, 192, 208])))
        step = float(rng.uniform(4.6, 5.2))
    else:
        n_slices = int(np.clip(round(rng.normal(17.5 if is_t1 else 18, 2.2)), 11, 29))
        weights = [0.41, 0.22, 0.20, 0.10, 0.07] if is_t1 else [0.28, 0.24, 0.24, 0.16, 0.08]
        reconstructed = int(rng.choice([512, 384, 320, 448, 640] if is_t1 else [512, 320, 448, 384, 640], p=weights))
        acquired = min(reconstructed, int(rng.choice([256, 288, 320])))
        step = float(np.clip(rng.normal(4.5, 0.35), 3.6, 6.2))
    block = _sagittal_block(body, rng, fov, n_slices, step, 0.06 if randomise else 0.035)
    sequence, signal = _contrast(rng, view, tesla, randomise)
    rows = acquired if rng.random() < 0.7 else int(0.85 * acquired) // 2 * 2
    return Protocol(
        view=view, blocks=(block,), fov_mm=(fov, fov), acquired=(rows, acquired),
        reconstructed=(reconstructed, reconstructed), thickness_mm=0.88 * step, sequence=sequence, signal=signal,
        samples=2, **_imperfections(body, rng, randomise),
    )  # fmt: skip


def _axial(body: Body, rng: np.random.Generator, profile: str, tesla: float, randomise: bool) -> Protocol:
    fov = float(rng.uniform(140, 260) if randomise else np.clip(rng.normal(185, 18), 150, 240))
    demo = profile == "demo"
    step = float(np.clip(rng.normal(4.4, 0.3), 3.5, 6.0))
    if rng.random() < (0.7 if demo else 0.45):
        per_disc = int(rng.integers(3, 5) if demo else rng.integers(5, 8))
        blocks = tuple(_disc_block(body, rng, level, per_disc, step) for level in range(N_LEVELS))
    else:
        blocks = (_straight_block(body, rng, step, 22 if demo else None),)
    if demo:
        reconstructed = int(rng.choice([192, 224, 256]))
        acquired = min(reconstructed, int(rng.choice([160, 176, 192])))
    else:
        reconstructed = int(rng.choice([320, 512, 640, 384, 448], p=[0.35, 0.3, 0.12, 0.15, 0.08]))
        acquired = min(reconstructed, int(rng.choice([224, 256, 288])))
    sequence, signal = _contrast(rng, AXIAL_T2, tesla, randomise)
    return Protocol(
        view=AXIAL_T2, blocks=blocks, fov_mm=(fov, fov), acquired=(acquired, acquired),
        reconstructed=(reconstructed, reconstructed), thickness_mm=0.88 * step, sequence=sequence, signal=signal,
        samples=2, **_imperfections(body, rng, randomise),
    )  # fmt: skip


def _axial_center(body: Body, rng: np.random.Generator, at: np.ndarray) -> np.ndarray:
    return at + np.array([rng.normal(0, 4), rng.normal(2, 5), 0])


def _disc_block(body: Body, rng: np.random.Generator, level: int, n_slices: int, step: float) -> Block:
    """A few slices along one disc, tilted with it."""
    normal = body.truth.normal[level]
    lean = np.degrees(np.arcsin(np.clip(-normal[1], -1, 1))) * rng.uniform(0.8, 1.05) + rng.normal(0, 1.5)
    sideways = np.degrees(np.arctan2(normal[0], normal[2])) * 0.6
    row = _turned(np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), sideways)
    column = _turned(np.array([0, 1.0, 0]), row, lean)
    at = 0.4 * body.truth.posterior[level] + 0.6 * body.truth.canal[level]
    return Block(_axial_center(body, rng, at), row, column, n_slices, step)


def _straight_block(body: Body, rng: np.random.Generator, step: float, n_slices: int | None) -> Block:
    """One block from above L1/2 to below L5/S1, tilted by the mean of the lower discs or not at all."""
    canal = body.truth.canal
    lean = rng.choice([0.0, 1.0]) * rng.uniform(0, 12)
    row, column = np.array([1.0, 0, 0]), _turned(np.array([0, 1.0, 0]), np.array([1.0, 0, 0]), lean)
    normal = np.cross(row, column)
    along = canal @ normal
    low, high = along.min() - 12 - rng.uniform(0, 10), along.max() + 10 + rng.uniform(0, 10)
    if n_slices is None:
        n_slices = int(np.ceil((high - low) / step)) + 1
    else:
        step = (high - low) / (n_slices - 1)
    middle = canal.mean(0)
    centre = middle + ((low + high) / 2 - middle @ normal) * normal
    return Block(_axial_center(body, rng, centre), row, column, n_slices, step)


def _contrast(rng: np.random.Generator, view: str, tesla: float, randomise: bool) -> tuple[Sequence, np.ndarray]:
    if view == SAGITTAL_T1:
        sequence = Sequence(rng.uniform(480, 720), rng.uniform(8, 14), 0.0, tesla)
    elif view == SAGITTAL_T2 and rng.random() < 0.22:
        sequence = Sequence(
            rng.uniform(3500, 5500), rng.uniform(45, 75), rng.uniform(150, 170) + 40 * (tesla > 2), tesla
        )
    else:
        sequence = Sequence(rng.uniform(2800, 4500), rng.uniform(85, 118), 0.0, tesla)
    if randomise and rng.random() < 0.75:
        return sequence, random_signal(rng)
    return sequence, tissue_signal(sequence, rng, spread=0.15 if randomise else 0.05)


def _imperfections(body: Body, rng: np.random.Generator, randomise: bool) -> dict:
    """Coil, noise, ghosts, saturation band, bias."""
    canal = body.truth.canal
    back = canal.mean(0) + np.array([0, 55 + body.person.fat_mm, 0])
    result = dict(
        noise=float(np.exp(rng.normal(np.log(0.022), 0.45))),
        coil_depth_mm=float(rng.uniform(85, 230)) if rng.random() < 0.65 else float("inf"),
        coil_centre=back + np.array([0, 0, rng.normal(0, 25)]),
        coil_length_mm=float(rng.uniform(300, 460)),
        saturation_mm=float(rng.uniform(12, 30)) if rng.random() < 0.25 else float("inf"),
        ghost=float(rng.gamma(1.5, 0.008)),
        bias=0.05 * rng.standard_normal(6),
        grain=float(rng.uniform(0.8, 1.4)),
        gain=float(np.exp(rng.normal(np.log(900), 0.45))),
    )
    if randomise:
        result.update(
            noise=float(np.exp(rng.uniform(np.log(0.005), np.log(0.12)))),
            coil_depth_mm=float(rng.uniform(40, 250)) if rng.random() < 0.7 else float("inf"),
            ghost=float(rng.gamma(1.2, 0.03)),
            bias=0.3 * rng.standard_normal(6),
            grain=float(rng.uniform(0.2, 3.0)),
        )
    return result


__all__ = ["PROFILES", "Block", "Protocol", "finder_protocol", "sample_protocols"]
