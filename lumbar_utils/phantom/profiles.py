"""Every measure of the spine as a function of the position along it.

Vertebrae, discs, sac and so on are not separate objects: their widths, edges and states are tables over the
straightened coordinate, sampled every `curve.STEP` mm. A structure at any number of points is then one table
look-up and a few products, for all levels at once. Disease enters here: a degree is a smooth local change of
these tables.

Sizes: Panjabi 1992 (lumbar vertebrae), Zhou 2000 (discs and bodies on CT), Lee 1995 (dural sac).
Grades: Lee 2011 and Schizas 2010 (canal), Lee 2010 (foramina), Bartynski 2003 (lateral recess).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, special

from ..labels import N_LEVELS
from .curve import STEP, SpineCurve
from .person import Person
from .sacrum import Remnants, bend_sacrum, reshape_transitional_vertebra, sample_remnants

VERTEBRAE = (
    *("T7", "T8", "T9", "T10", "T11", "T12"),
    *("L1", "L2", "L3", "L4", "L5"),
    *("S1", "S2", "S3", "S4", "S5", "Co"),
)
L1, L5, S1 = VERTEBRAE.index("L1"), VERTEBRAE.index("L5"), VERTEBRAE.index("S1")
N_VERTEBRAE = len(VERTEBRAE)

_HEIGHT = np.array([19, 19.5, 20.5, 21.5, 23, 25, 26, 27, 27.5, 27.5, 27, 28.5, 22, 18.5, 16.5, 14, 14.0])
_DEPTH_TOP = np.array([26, 27, 28, 29, 30, 31, 31.5, 32.5, 33.5, 34.5, 35, 33, 21, 15, 12, 9, 7.0])
_DEPTH_BOTTOM = np.array([27, 28, 29, 30, 31, 31.5, 32.5, 33.5, 34.5, 35, 35, 23, 16, 12.5, 9.5, 7, 4.0])
_WIDTH_TOP = np.array([28, 29, 30, 32, 34, 38, 41, 43, 45, 48, 50, 51, 34, 27, 22, 18, 12.0])
_WIDTH_BOTTOM = np.array([29, 30, 32, 34, 38, 41, 43, 45, 48, 50, 52, 36, 28, 23, 19, 15, 6.0])
_DISC = np.array([4.5, 4.5, 5, 5.5, 6, 7, 8.2, 9.6, 10.6, 11.2, 10.4, 2.0, 1.6, 1.1, 1.0, 1.2])
_DISC_SHARE = np.array([0.06, 0.09, 0.13, 0.25, 0.31])
_BODY_SHARE = np.array([-0.04, -0.02, 0.0, 0.05, 0.17])
_ANGLE_SMOOTHING = 7.0
_PEDICLE_CENTRE = np.array([*[10.5] * 5, 12.5, 14.5, 15.2, 16.5, 18.5, 21.5, 23, 17, 13, 10, 8, 6])
_PEDICLE_WIDTH = np.array([*[5.5] * 5, 6.5, 7, 8, 9.5, 12, 16, 18, 14, 10, 8, 6, 4])
_SAC_DEPTH = np.array([*[15.0] * 5, 16, 16.5, 15.5, 14.5, 14.5, 14, 12.5, 8, 4, 2, 1, 1])
_CANAL_DEPTH = np.array([*[0.0] * 11, 12, 8.5, 5, 3, 2, 0.5])
"""Of the sacral canal, which goes on where the sac has ended."""
_SAC_WIDTH = np.array([*[16.0] * 5, 18, 19, 18.5, 18, 18.5, 18, 15.5, 10, 6, 3, 2, 1])

_TABLES = ("height", "top", "bottom", "width top", "width bottom", "disc")
_SIZES = (_HEIGHT, _DEPTH_TOP, _DEPTH_BOTTOM, _WIDTH_TOP, _WIDTH_BOTTOM, _DISC)


@dataclass(frozen=True)
class Spine:
    """Curve and profiles of one spine. Profiles are float32 over the curve's samples, mm unless said otherwise.

    Profiles with a side have shape (2, n): left, right.
    """

    curve: SpineCurve
    vertebra: np.ndarray  # int16: the vertebra whose discs' middles enclose the sample
    body_middle: np.ndarray  # position of its middle
    body_half: np.ndarray  # half its height
    disc_middle: np.ndarray  # position of the nearest disc's middle
    disc_half: np.ndarray
    disc: np.ndarray  # int16: the nearest disc, counted by the vertebra above it
    shear: np.ndarray  # how much the position of an end-plate grows per mm backward
    shear_slope: np.ndarray  # its derivative along s
    slip: np.ndarray  # forward shift of everything
    depth: np.ndarray  # of bodies and discs, front to back
    half_width: np.ndarray
    posterior: np.ndarray  # posterior edge of bodies and discs
    sac_front: np.ndarray  # of the thecal sac
    sac_back: np.ndarray
    sac_half: np.ndarray
    crowding: np.ndarray  # 0 roots float in CSF, 1 no CSF left
    cord: np.ndarray  # radius
    canal_back: np.ndarray  # inner edge of laminae at the midline
    canal_half: np.ndarray
    flavum: np.ndarray  # thickness of the ligamentum flavum
    interlaminar: np.ndarray  # 1 between two laminae, 0 on a lamina
    recess: np.ndarray  # (2, n) degree / 3
    foramen: np.ndarray  # (2, n) degree / 3
    pedicle_centre: np.ndarray
    pedicle_half: np.ndarray
    degeneration: np.ndarray
    middles: np.ndarray  # (N_VERTEBRAE,)
    halves: np.ndarray
    disc_middles: np.ndarray  # (N_VERTEBRAE - 1,)
    disc_halves: np.ndarray
    remnants: Remnants  # what is left of the discs
    disc_angles: np.ndarray  # true inclination of the disc planes, radians

    def index(self, s: np.ndarray) -> np.ndarray:
        """Sample nearest to each position, int32, clipped to the curve."""
        return np.clip(s * np.float32(1 / STEP) + np.float32(0.5), 0, len(self.vertebra) - 1).astype(np.int32)

    def straighten(self, s: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Follow the true end-plates and slips: curve coordinates to anatomical (s, v) and the sample index."""
        near = np.clip(v, -45, 45)
        straight = s
        for _ in range(2):  # Newton on s = straight - shear(straight) * v; plain iteration diverges in wedged discs
            index = self.index(straight)
            slope = np.maximum(1 - self.shear_slope.take(index) * near, np.float32(0.35))
            step = (s + self.shear.take(index) * near - straight) / slope
            straight = straight + np.clip(step, -6, 6)
        index = self.index(straight)
        return straight, v + self.slip.take(index), index

    def place(self, s: float | np.ndarray, u: float | np.ndarray, v: float | np.ndarray) -> np.ndarray:
        """Anatomical (s, u, v) to body points (..., 3), the inverse of `project` and `straighten`."""
        back = np.asarray(v, dtype=np.float64) - self.curve.at(self.slip.astype(np.float64), s)
        along = s - self.curve.at(self.shear.astype(np.float64), s) * np.clip(back, -45, 45)
        return self.curve.place(along, u, back)


def build_spine(person: Person, rng: np.random.Generator) -> Spine:
    """Lay out the spine of an unflipped person. `rng` gives the differences that `Person` has no field for."""
    size = person.stature
    discs = np.arange(L1, L1 + N_LEVELS)
    tables = dict(zip(_TABLES, (t.copy() for t in _SIZES), strict=True))
    reshape_transitional_vertebra(person, tables, S1)
    remnants = sample_remnants(person, S1, N_VERTEBRAE - 1, rng)
    height = 1.06 * tables["height"] * size * np.exp(person.height_spread * rng.standard_normal(N_VERTEBRAE))
    disc_height = tables["disc"] * size * np.exp(person.disc_spread * rng.standard_normal(N_VERTEBRAE - 1))
    disc_height[discs] *= 1 - 0.45 * person.degeneration
    disc_height[:L1] *= 1 - 0.2 * person.degeneration.mean()
    disc_height[S1] += 3.5 * person.sacral_disc * size
    if person.fused >= 0:
        disc_height[L1 + person.fused] *= 0.4
    # Sacra differ in how fast they taper.
    taper = np.where(np.arange(N_VERTEBRAE) > S1, rng.normal(1, 0.09), 1.0)
    depth_top, depth_bottom = tables["top"] * size * taper, tables["bottom"] * size * taper
    width_top, width_bottom = tables["width top"] * size, tables["width bottom"] * size
    height *= taper
    body_angle, disc_angle = _element_angles(person, rng)
    middle_depth = (depth_bottom[:-1] + depth_top[1:]) / 2
    wedged = np.arange(L1 - 2, L1 - 2 + len(person.fracture))
    collapsed = height[wedged] * person.fracture[:, 0]
    body_angle[wedged] -= collapsed / depth_top[wedged]
    # A disc cannot be more wedged than its height allows.
    disc_angle = np.clip(disc_angle, -disc_height / middle_depth, disc_height / middle_depth)
    disc_length = np.maximum(disc_height - 0.5 * middle_depth * disc_angle, 0.35 * disc_height)
    # The curve runs along the back of the bodies, which a wedge leaves as it was.
    length = height - 0.35 * 0.5 * (depth_top + depth_bottom) * body_angle
    length[wedged] -= 0.6 * collapsed

    element = np.empty(2 * N_VERTEBRAE - 1)
    turn = np.empty_like(element)
    element[0::2], element[1::2] = length, disc_length
    turn[0::2], turn[1::2] = body_angle, disc_angle
    edges = np.concatenate([[0], np.cumsum(element)])
    n = int(edges[-1] / STEP) + 1
    s = np.arange(n) * STEP
    directions = np.concatenate([[0], np.cumsum(turn)])
    # The sacral slope fixes the direction at the top of S1, which is edge 2 * S1.
    # People are straightened by the table: whatever the slope, the top of L1 tips back by a few degrees mostly.
    tip = person.sacral_slope_degrees - person.lordosis_degrees
    tip = -10 + 16 * np.tanh((tip + 10) / 16)
    directions += np.radians(tip + person.lordosis_degrees) - directions[2 * S1]
    true_angle = np.interp(s, edges, directions)
    angle = ndimage.gaussian_filter1d(true_angle, _ANGLE_SMOOTHING * size / STEP, mode="nearest")

    middles, halves = (edges[0:-1:2] + edges[1::2]) / 2, length / 2
    disc_middles, disc_halves = (edges[1:-1:2] + edges[2::2]) / 2, disc_length / 2
    level_s = disc_middles[discs]
    sideways = _sideways(person, s, middles, rng)
    curve = SpineCurve.from_angles(angle, sideways, round(middles[L1 + 2] / STEP))

    nearest = np.searchsorted(disc_middles, s)
    nearest_disc = np.abs(s[:, None] - disc_middles).argmin(1)
    t = np.clip((s - middles[nearest]) / halves[nearest], -1, 1)

    def over_bodies(values: np.ndarray, smooth: float = 6.0) -> np.ndarray:
        return ndimage.gaussian_filter1d(np.interp(s, middles, values), smooth / STEP, mode="nearest")

    def at_discs(values: np.ndarray, width: float, shift: float = 0.0) -> np.ndarray:
        bumps = np.exp(-0.5 * ((s[:, None] - level_s - shift * size) / (width * size)) ** 2)
        return bumps @ np.asarray(values, dtype=np.float64)

    grades = person.degrees.reshape(-1, N_LEVELS)
    canal, left_f, right_f, left_r, right_r = grades
    top, bottom = depth_top[nearest], depth_bottom[nearest]
    half_top, half_bottom = width_top[nearest] / 2, width_bottom[nearest] / 2
    lumbar = 1 / (1 + np.exp(-(s - middles[L1 - 3]) / 12)) / (1 + np.exp((s - edges[2 * S1] - 6) / 3))
    waist = np.cos(np.pi / 2 * t) ** 2 * (np.abs(s - disc_middles[nearest_disc]) > disc_halves[nearest_disc])
    lips = at_discs(1.6 * person.degeneration + 0.3, 5.0)
    depth = top + (bottom - top) * (t + 1) / 2 - 3.0 * size * waist * lumbar + lips * lumbar
    half_width = half_top + (half_bottom - half_top) * (t + 1) / 2 - 2.6 * size * waist * lumbar + lips * lumbar

    rim = disc_length[discs] / size
    bulge = person.bulge_mm * 0.55 + 1.0 * canal + 0.25 * (left_r + right_r)
    posterior = -1.3 * waist * lumbar
    for i in range(N_LEVELS):
        posterior += bulge[i] * np.exp(-0.5 * ((s - level_s[i]) / (0.42 * rim[i] * size + 1.3)) ** 2)
    slip = np.zeros(n)
    for i, forward in enumerate(person.listhesis_mm):
        edge = special.expit((level_s[i] - s) / (0.18 * disc_height[discs[i]]))
        fade = np.clip((s - level_s[i] + 95 * size) / (60 * size), 0, 1)
        slip += forward * edge * fade**2 * (3 - 2 * fade)

    sac_depth = over_bodies(_SAC_DEPTH * size * person.sac_scale)
    sac_half = over_bodies(_SAC_WIDTH * size * person.sac_scale) / 2
    lipomatosis = 1 - person.epidural_fat * 0.5 / (1 + np.exp(-(s - middles[L1 + 2]) / 25))
    bony = _CANAL_DEPTH * size * rng.uniform(0.75, 1.2) * (0.5 + 0.5 * person.sac_scale)
    canal_depth = np.maximum(sac_depth, over_bodies(bony))
    sac_depth, sac_half = sac_depth * lipomatosis, sac_half * lipomatosis
    # Mostly at S2, from the lower part of S1 to S3 (Macdonald 1999).
    sac_end = np.clip(middles[S1 + 1] + rng.normal(0, 11 * size), edges[2 * S1 + 1] - 4, middles[S1 + 2])
    taper = np.clip((sac_end - s) / (38 * size), 0, 1)
    sac_depth, sac_half = sac_depth * np.sqrt(taper), sac_half * np.sqrt(taper)
    fat_gap = rng.uniform(1.5, 8) * size * np.interp(s, middles[[S1, S1 + 2]], [1, 0.2])
    front_gap = 1.0 + 0.8 * waist + fat_gap / (1 + np.exp(-(s - edges[2 * S1] + 2) / 8))
    back_gap = 1.0 + 0.0 * s
    sac_front = posterior + front_gap
    # Between the discs the sac's back follows a smooth line; the front is pushed by bulges, so depth is lost there.
    smooth_front = ndimage.gaussian_filter1d(np.minimum(posterior, 0) + front_gap, 10 / STEP, mode="nearest")
    squeeze = at_discs(2.4 * canal + 0.15 * canal**2, 6.0)
    sac_back = smooth_front + sac_depth - np.minimum(squeeze, 0.62 * sac_depth)
    sac_back = np.maximum(sac_back, sac_front + 0.12 * sac_depth)
    sac_half = sac_half * (1 - at_discs(0.135 * canal, 6.5))
    fill = np.clip(at_discs(np.clip((canal - 0.5) / 2.0, 0, 1.15), 7.0), 0, 1)
    conus = middles[L1] + rng.normal(4, 10) * size + person.conus_shift_mm * size
    cord = 4.3 * size * np.clip((conus - s) / (30 * size), 0, 1) ** 0.6

    gap = np.where(np.arange(N_VERTEBRAE - 1) < S1, 1.0, 0.0)
    gap[S1] = np.clip(1.6 * person.transition, 0, 1)
    bumps = np.exp(-0.5 * ((s[:, None] - disc_middles + size) / (6.0 * size)) ** 2)
    interlaminar = np.clip(bumps @ gap, 0, 1)
    canal_back = smooth_front + canal_depth + back_gap + interlaminar * 5.5 * size
    flavum = interlaminar * 3.0 * size + at_discs(1.15 * canal + 0.35 * (left_r + right_r), 6.5)
    canal_half = over_bodies((_PEDICLE_CENTRE - _PEDICLE_WIDTH / 2) * size * (0.6 + 0.4 * person.sac_scale))
    recess = np.stack([at_discs(left_r, 7.5, 2.0), at_discs(right_r, 7.5, 2.0)]) / 3
    foramen = np.stack([at_discs(left_f, 12.0, -4.0), at_discs(right_f, 12.0, -4.0)]) / 3
    wear = np.full(N_VERTEBRAE - 1, 0.35 * person.degeneration.mean())
    wear[discs] = person.degeneration

    def f(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values, dtype=np.float32)

    return Spine(
        curve=curve,
        vertebra=nearest.astype(np.int16),
        body_middle=f(middles[nearest]),
        body_half=f(halves[nearest]),
        disc_middle=f(disc_middles[nearest_disc]),
        disc_half=f(disc_halves[nearest_disc]),
        disc=nearest_disc.astype(np.int16),
        shear=f(np.tan(true_angle - angle)),
        shear_slope=f(np.gradient(np.tan(true_angle - angle), STEP)),
        slip=f(slip),
        depth=f(depth),
        half_width=f(half_width),
        posterior=f(posterior),
        sac_front=f(sac_front),
        sac_back=f(sac_back),
        sac_half=f(sac_half),
        crowding=f(fill),
        cord=f(cord),
        canal_back=f(canal_back),
        canal_half=f(canal_half),
        flavum=f(flavum),
        interlaminar=f(interlaminar),
        recess=f(np.clip(recess, 0, 1)),
        foramen=f(np.clip(foramen, 0, 1)),
        pedicle_centre=f(over_bodies(_PEDICLE_CENTRE * size)),
        pedicle_half=f(over_bodies(_PEDICLE_WIDTH * size / 2)),
        degeneration=f(wear[nearest_disc]),
        middles=middles,
        halves=halves,
        disc_middles=disc_middles,
        disc_halves=disc_halves,
        remnants=remnants,
        disc_angles=(directions[1:-1:2] + directions[2::2]) / 2,
    )


def _element_angles(person: Person, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Wedge of every body (17) and every disc (16) in radians; lordosis positive."""
    body, disc = np.full(N_VERTEBRAE, -1.2), np.full(N_VERTEBRAE - 1, -1.6)
    body[L1:S1] = _BODY_SHARE * person.lordosis_degrees
    disc[L1:S1] = _DISC_SHARE * person.lordosis_degrees * (1 + 0.1 * rng.standard_normal(N_LEVELS))
    bend_sacrum(body, disc, person, S1, rng)
    return np.radians(body), np.radians(disc)


def _sideways(person: Person, s: np.ndarray, middles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lateral offset of the curve: one bow between T11 and S1 whose ends meet at the given angle."""
    apex = middles[L1 + 1] + rng.uniform(-25, 25)
    width = 55.0
    steepest = width * np.exp(-0.5)  # of width**2 * gaussian, per radian
    amplitude = np.tan(np.radians(person.scoliosis_degrees) / 2) * width**2 / steepest
    return amplitude * np.exp(-0.5 * ((s - apex) / width) ** 2)
