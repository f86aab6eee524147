"""Every measure of the spine as a function of the position along it.

Vertebrae, discs, sac and so on are not separate objects: their widths, edges and states are tables over the
straightened coordinate, sampled every `curve.STEP` mm. A structure at any number of points is then one table
look-up and a few products, for all levels at once. Disease enters here: a degree is a smooth local change of
these tables.

Sizes: Panjabi 1992 (lumbar vertebrae), Zhou 2000 (discs and bodies on CT), Lee 1995 (dural sac).
Grades: Lee 2011 and Schizas 2010 (canal), Lee 2010 (foramina), Bartynski 2003 (lateral recess).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage, special

from ..labels import N_LEVELS
from .curve import STEP, SpineCurve
from .person import L1, L5, N_VERTEBRAE, S1, Person
from .sacrum import bend_sacrum, reshape_transitional_vertebra, sample_remnants

SIZES = {
    "height": np.array([19, 19.5, 20.5, 21.5, 23, 25, 26, 27, 27.5, 27.5, 27, 28.5, 22, 18.5, 16.5, 14, 14.0]),
    "top": np.array([26, 27, 28, 29, 30, 31, 31.5, 32.5, 33.5, 34.5, 35, 33, 21, 15, 12, 9, 7.0]),
    "bottom": np.array([27, 28, 29, 30, 31, 31.5, 32.5, 33.5, 34.5, 35, 35, 23, 16, 12.5, 9.5, 7, 4.0]),
    "width top": np.array([28, 29, 30, 32, 34, 38, 41, 43, 45, 48, 50, 51, 34, 27, 22, 18, 12.0]),
    "width bottom": np.array([29, 30, 32, 34, 38, 41, 43, 45, 48, 50, 52, 36, 28, 23, 19, 15, 6.0]),
    "disc": np.array([4.5, 4.5, 5, 5.5, 6, 7, 8.2, 9.6, 10.6, 11.2, 10.4, 2.0, 1.6, 1.1, 1.0, 1.2]),
}
"""Height, depth and width of every body, at its upper and lower end-plate, and height of every disc."""
_DISC_SHARE = np.array([0.06, 0.09, 0.13, 0.25, 0.31])
_BODY_SHARE = np.array([-0.04, -0.02, 0.0, 0.05, 0.17])
_ANGLE_SMOOTHING = 7.0
_TWIST_AXIS = np.float32(9.0)
"""mm behind the bodies: vertebrae rotate about the canal."""
_PEDICLE_CENTRE = np.array([*[10.5] * 5, 12.5, 14.5, 15.2, 16.5, 18.5, 21.5, 23, 17, 13, 10, 8, 6])
_PEDICLE_WIDTH = np.array([*[5.5] * 5, 6.5, 7, 8, 9.5, 12, 16, 18, 14, 10, 8, 6, 4])
_SAC_DEPTH = np.array([*[15.0] * 5, 16, 16.5, 15.5, 14.5, 14.5, 14, 12.5, 8, 4, 2, 1, 1])
_CANAL_DEPTH = np.array([*[0.0] * 11, 12, 8.5, 5, 3, 2, 0.5])
"""Of the sacral canal, which goes on where the sac has ended."""
_SAC_WIDTH = np.array([*[16.0] * 5, 18, 19, 18.5, 18, 18.5, 18, 15.5, 10, 6, 3, 2, 1])
_DISCS = np.arange(L1, S1)


class Spine:
    """Curve and profiles of the spine of an unflipped person.

    A profile is float32 over the curve's samples, in mm if not said otherwise; one with a side has shape (2, n), left
    and right. `rng` gives the differences that `Person` has no field for.
    """

    def __init__(self, person: Person, rng: np.random.Generator):
        self.size = person.stature
        # (discs,) share of the depth that is left, its middle (0 behind, 1 in front), darkness of the line beside it
        self.disc_extent, self.disc_position, self.disc_scar = sample_remnants(person, rng)
        sizes = _sample_sizes(person, rng)
        self._stack_elements(person, sizes, rng)
        posterior, waist = self._shape_bodies(person, sizes)
        self._shape_canal(person, posterior, waist, rng)

    def _stack_elements(self, person: Person, sizes: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        """Bodies and discs on top of each other, and the curve along their backs."""
        body_angle, disc_angle = _element_angles(person, rng)
        disc_height, middle_depth = sizes["disc"], (sizes["bottom"][:-1] + sizes["top"][1:]) / 2
        wedged = slice(L1 - 2, S1)
        collapsed = sizes["height"][wedged] * person.fracture[:, 0]
        body_angle[wedged] -= collapsed / sizes["top"][wedged]
        # A disc cannot be more wedged than its height allows.
        disc_angle = np.clip(disc_angle, -disc_height / middle_depth, disc_height / middle_depth)
        disc_length = np.maximum(disc_height - 0.5 * middle_depth * disc_angle, 0.35 * disc_height)
        # The curve runs along the back of the bodies, which a wedge leaves as it was.
        length = sizes["height"] - 0.35 * 0.5 * (sizes["top"] + sizes["bottom"]) * body_angle
        length[wedged] -= 0.6 * collapsed
        length[L5] = max(length[L5] - person.short_back_mm * self.size, 10 * self.size)

        element, turn = np.empty((2, 2 * N_VERTEBRAE - 1))
        element[0::2], element[1::2] = length, disc_length
        turn[0::2], turn[1::2] = body_angle, disc_angle
        edges = np.concatenate([[0], np.cumsum(element)])
        self.sacrum_edges = edges[2 * S1], edges[2 * S1 + 1]  # top and bottom of S1
        self.middles, self.halves = (edges[0:-1:2] + edges[1::2]) / 2, length / 2  # (vertebrae,) positions
        self.disc_middles, self.disc_halves = (edges[1:-1:2] + edges[2::2]) / 2, disc_length / 2  # (discs,)

        directions = np.concatenate([[0], np.cumsum(turn)])
        # The sacral slope fixes the direction at the top of S1, which is edge 2 * S1.
        # People are straightened by the table: whatever the slope, the top of L1 tips back by a few degrees mostly.
        tip = person.sacral_slope_degrees - person.lordosis_degrees
        tip = -10 + 16 * np.tanh((tip + 10) / 16)
        directions += np.radians(tip + person.lordosis_degrees) - directions[2 * S1]
        self.disc_angles = (directions[1:-1:2] + directions[2::2]) / 2  # true inclination of the disc planes, radians
        self.s = s = np.arange(int(edges[-1] / STEP) + 1) * STEP
        true_angle = np.interp(s, edges, directions)
        angle = ndimage.gaussian_filter1d(true_angle, _ANGLE_SMOOTHING * self.size / STEP, mode="nearest")
        shear = np.tan(true_angle - angle)
        self.shear = float32(shear)  # how much the position of an end-plate grows per mm backward
        self.shear_slope = float32(np.gradient(shear, STEP))  # its derivative along s
        sideways, bow = _sideways(person, s, self.middles, rng)
        self.twist = float32(np.radians(person.rotation_degrees) * bow)  # axial rotation about the canal, radians
        self.curve = SpineCurve(angle, sideways, round(self.middles[L1 + 2] / STEP))

    def _shape_bodies(self, person: Person, sizes: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Outlines of bodies and discs, bulges and slips; the posterior edge and how hollow the bodies are (0..1)."""
        s, size = self.s, self.size
        vertebra, disc = np.searchsorted(self.disc_middles, s), np.abs(s[:, None] - self.disc_middles).argmin(1)
        body_middle, body_half = self.middles[vertebra], self.halves[vertebra]
        disc_middle, disc_half = self.disc_middles[disc], self.disc_halves[disc]
        t = np.clip((s - body_middle) / body_half, -1, 1)
        lumbar = 1 / (1 + np.exp(-(s - self.middles[L1 - 3]) / 12)) / (1 + np.exp((s - self.sacrum_edges[0] - 6) / 3))
        waist = np.cos(np.pi / 2 * t) ** 2 * (np.abs(s - disc_middle) > disc_half)
        lips = self.at_discs(1.6 * person.degeneration + 0.3, 5.0)

        def outline(top: np.ndarray, bottom: np.ndarray, hollow_mm: float) -> np.ndarray:
            top, bottom = top[vertebra], bottom[vertebra]
            return top + (bottom - top) * (t + 1) / 2 - hollow_mm * size * waist * lumbar + lips * lumbar

        _, _, _, left_recess, right_recess = grades = person.degrees.reshape(-1, N_LEVELS)
        bulge = person.bulge_mm * 0.55 + 0.8 * grades[0] + 0.2 * (left_recess + right_recess)
        posterior = -1.3 * waist * lumbar
        for level, at in enumerate(_DISCS):
            width = 0.42 * (2 * self.disc_halves[at] / size) * size + 1.3
            posterior += bulge[level] * np.exp(-0.5 * ((s - self.disc_middles[at]) / width) ** 2)
        slip = np.zeros(len(s))
        for at, forward in zip(_DISCS, person.listhesis_mm, strict=True):
            edge = special.expit((self.disc_middles[at] - s) / (0.18 * sizes["disc"][at]))
            fade = np.clip((s - self.disc_middles[at] + 95 * size) / (60 * size), 0, 1)
            slip += forward * edge * fade**2 * (3 - 2 * fade)
        wear = np.full(N_VERTEBRAE - 1, 0.35 * person.degeneration.mean())
        wear[_DISCS] = person.degeneration

        self.vertebra = vertebra.astype(np.int16)  # the one whose discs' middles enclose the sample
        self.body_middle, self.body_half = float32(body_middle), float32(body_half)  # its position, half its height
        self.disc = disc.astype(np.int16)  # the nearest one, counted by the vertebra above it
        self.disc_middle, self.disc_half = float32(disc_middle), float32(disc_half)
        self.degeneration = float32(wear[disc])  # 0..1
        self.depth = float32(outline(sizes["top"], sizes["bottom"], 3.0))  # of bodies and discs, front to back
        self.half_width = float32(outline(sizes["width top"] / 2, sizes["width bottom"] / 2, 2.6))
        self.posterior = float32(posterior)  # posterior edge of bodies and discs
        self.slip = float32(slip)  # forward shift of everything
        return posterior, waist

    def _shape_canal(self, person: Person, posterior: np.ndarray, waist: np.ndarray, rng: np.random.Generator) -> None:
        """Sac, cord, laminae and pedicles, and what stenosis does to them."""
        s, size, middles = self.s, self.size, self.middles
        canal, left_foramen, right_foramen, left_recess, right_recess = person.degrees.reshape(-1, N_LEVELS)
        lipomatosis = 1 - person.epidural_fat * 0.5 / (1 + np.exp(-(s - middles[L1 + 2]) / 25))
        sac_depth = self.over_bodies(_SAC_DEPTH * size * person.sac_scale)
        bony = _CANAL_DEPTH * size * rng.uniform(0.75, 1.2) * (0.5 + 0.5 * person.sac_scale)
        canal_depth = np.maximum(sac_depth, self.over_bodies(bony))
        # Mostly at S2, from the lower part of S1 to S3 (Macdonald 1999).
        sac_end = np.clip(middles[S1 + 1] + rng.normal(0, 11 * size), self.sacrum_edges[1] - 4, middles[S1 + 2])
        taper = np.sqrt(np.clip((sac_end - s) / (38 * size), 0, 1))
        sac_depth = sac_depth * lipomatosis * taper
        sac_half = self.over_bodies(_SAC_WIDTH * size * person.sac_scale) / 2 * lipomatosis * taper
        fat_gap = rng.uniform(1.5, 8) * size * np.interp(s, middles[[S1, S1 + 2]], [1, 0.2])
        front_gap = 1.0 + 0.8 * waist + fat_gap / (1 + np.exp(-(s - self.sacrum_edges[0] + 2) / 8))
        sac_front = posterior + front_gap
        # Between the discs the sac's back follows a smooth line; the front is pushed by bulges, so depth is lost there.
        smooth_front = self.smooth(np.minimum(posterior, 0) + front_gap, 10)
        # Fat behind the sac, from none to a wedge; with much of it a narrow sac lies flat in front of it.
        dorsal = np.clip(rng.uniform(-0.2, 1.1) + 0.2 * rng.standard_normal(N_LEVELS), 0, 1)
        fat = np.clip(self.at_discs(dorsal, 8.0), 0, 1)
        # Where a herniation takes part of the room, less is lost behind. Some 100 mm2 are left at degree 1, 60 at 2:
        # stenosis is relative from 100 and absolute from 75 on (Schonstrom 1985).
        behind = (0.9 + 0.6 * dorsal) * np.where(person.herniation_mm > 0, 0.6, 1)
        squeeze = self.at_discs((0.45 * canal + 0.2 * canal**2) * behind, 6.0)
        sac_back = smooth_front + sac_depth - np.minimum(squeeze, 0.62 * sac_depth)
        fill = self.at_discs(np.clip((canal - 0.5) / 2.0, 0, 1.15) * rng.uniform(0.7, 1.1, N_LEVELS), 7.0)
        conus = middles[L1] + rng.normal(4, 10) * size + person.conus_shift_mm * size

        gap = np.where(np.arange(N_VERTEBRAE - 1) < S1, 1.0, 0.0)
        gap[S1] = np.clip(1.6 * person.transition, 0, 1)
        bumps = np.exp(-0.5 * ((s[:, None] - self.disc_middles + size) / (6.0 * size)) ** 2)
        interlaminar = np.clip(bumps @ gap, 0, 1)
        thick = rng.uniform(0.75, 1.5, N_LEVELS) * (0.35 * canal + 0.15 * (left_recess + right_recess))
        canal_half = (_PEDICLE_CENTRE - _PEDICLE_WIDTH / 2) * size * (0.6 + 0.4 * person.sac_scale)
        recess = np.stack([self.at_discs(side, 7.5, 2.0) for side in (left_recess, right_recess)])
        foramen = np.stack([self.at_discs(side, 12.0, -4.0) for side in (left_foramen, right_foramen)])

        self.sac_front = float32(sac_front)  # of the thecal sac
        self.sac_back = float32(np.maximum(sac_back, sac_front + 0.12 * sac_depth))
        self.sac_half = float32(sac_half)
        self.crowding = float32(np.clip(fill, 0, 1))  # 0 roots float in CSF, 1 no CSF left
        self.cord = float32(4.3 * size * np.clip((conus - s) / (30 * size), 0, 1) ** 0.6)  # radius
        # Inner edge of the laminae at the midline
        self.canal_back = float32(
            smooth_front
            + canal_depth
            + 1.0
            + interlaminar * (3.0 * size + 11.0 * size * fat - 0.75 * squeeze * (1 - fat))
        )
        self.canal_half = float32(self.over_bodies(canal_half))
        thickness = interlaminar * 2.4 * size + self.at_discs(thick, 6.5)
        self.flavum = float32(thickness)  # of the ligamentum flavum
        self.dorsal_fat = float32(fat)  # share of fat in the room between sac and flava, 0 to 1
        self.interlaminar = float32(interlaminar)  # 1 between two laminae, 0 on a lamina
        self.recess = float32(np.clip(recess / 3, 0, 1))  # (2, n) degree / 3
        self.foramen = float32(np.clip(foramen / 3, 0, 1))  # (2, n) degree / 3
        self.pedicle_centre = float32(self.over_bodies(_PEDICLE_CENTRE * size))
        self.pedicle_half = float32(self.over_bodies(_PEDICLE_WIDTH * size / 2))

    def smooth(self, profile: np.ndarray, sd_mm: float) -> np.ndarray:
        """A profile smoothed along the curve."""
        return ndimage.gaussian_filter1d(profile, sd_mm / STEP, mode="nearest")

    def over_bodies(self, values: np.ndarray) -> np.ndarray:
        """The profile that has these values (vertebrae,) at the bodies' middles."""
        return self.smooth(np.interp(self.s, self.middles, values), 6.0)

    def at_discs(self, values: np.ndarray, width: float, shift: float = 0.0) -> np.ndarray:
        """A bump of each height (levels,) at each lumbar disc, `shift` mm below it; mm at stature 1."""
        away = self.s[:, None] - self.disc_middles[_DISCS] - shift * self.size
        return np.exp(-0.5 * (away / (width * self.size)) ** 2) @ np.asarray(values, dtype=np.float64)

    def index(self, s: np.ndarray) -> np.ndarray:
        """Sample nearest to each position, clipped to the curve."""
        return np.clip(s * np.float32(1 / STEP) + np.float32(0.5), 0, len(self.vertebra) - 1).astype(np.intp)

    def straighten(self, s: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
        """Follow rotations, the true end-plates and slips: curve coordinates to anatomical (s, u, v) and the index."""
        if self.twist.any():
            u, v = _turned(u, v, self.twist.take(self.index(s)))
        near = np.clip(v, -45, 45)
        straight = s
        for _ in range(2):  # Newton on s = straight - shear(straight) * v; plain iteration diverges in wedged discs
            index = self.index(straight)
            slope = np.maximum(1 - self.shear_slope.take(index) * near, np.float32(0.35))
            step = (s + self.shear.take(index) * near - straight) / slope
            straight = straight + np.clip(step, -6, 6)
        index = self.index(straight)
        return straight, u, v + self.slip.take(index), index

    def place(self, s: float | np.ndarray, u: float | np.ndarray, v: float | np.ndarray) -> np.ndarray:
        """Anatomical (s, u, v) to body points (..., 3), the inverse of `project` and `straighten`."""
        back = np.asarray(v, dtype=np.float64) - self.curve.at(self.slip.astype(np.float64), s)
        along = s - self.curve.at(self.shear.astype(np.float64), s) * np.clip(back, -45, 45)
        u, back = _turned(np.asarray(u, dtype=np.float64), back, -self.curve.at(self.twist.astype(np.float64), along))
        return self.curve.place(along, u, back)


def _turned(u: np.ndarray, v: np.ndarray, radians: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sine, cosine = np.sin(radians), np.cos(radians)
    return cosine * u - sine * (v - _TWIST_AXIS), sine * u + cosine * (v - _TWIST_AXIS) + _TWIST_AXIS


def float32(values: np.ndarray) -> np.ndarray:
    """What points look their values up in."""
    return np.asarray(values, dtype=np.float32)


def _sample_sizes(person: Person, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The tables of `SIZES` for one person, mm."""
    size = person.stature
    tables = reshape_transitional_vertebra(person, SIZES)
    height = 1.06 * tables["height"] * size * np.exp(person.height_spread * rng.standard_normal(N_VERTEBRAE))
    disc = tables["disc"] * size * np.exp(person.disc_spread * rng.standard_normal(N_VERTEBRAE - 1))
    disc[_DISCS] *= 1 - 0.45 * person.degeneration
    disc[:L1] *= 1 - 0.2 * person.degeneration.mean()
    disc[S1] += 3.5 * person.sacral_disc * size
    if person.fused >= 0:
        disc[L1 + person.fused] *= 0.4
    # Sacra differ in how fast they taper.
    taper = np.where(np.arange(N_VERTEBRAE) > S1, rng.normal(1, 0.09), 1.0)
    height[S1 : S1 + 2] *= person.sacral_heights
    scaled = {name: values * size for name, values in tables.items()}
    return scaled | {
        "height": height * taper, "disc": disc, "top": scaled["top"] * taper, "bottom": scaled["bottom"] * taper,
    }  # fmt: skip


def _element_angles(person: Person, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Wedge of every body (17) and every disc (16) in radians; lordosis positive."""
    body, disc = np.full(N_VERTEBRAE, -1.2), np.full(N_VERTEBRAE - 1, -1.6)
    body[L1:S1] = _BODY_SHARE * person.lordosis_degrees
    disc[L1:S1] = _DISC_SHARE * person.lordosis_degrees * (1 + 0.1 * rng.standard_normal(N_LEVELS))
    body[L1:S1] += person.body_wedge_degrees
    disc[L1:S1] += person.disc_wedge_degrees
    bend_sacrum(body, disc, person, rng)
    return np.radians(body), np.radians(disc)


def _sideways(
    person: Person, s: np.ndarray, middles: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Lateral offset of the curve, and the relative rotation: a bow between T11 and S1 whose ends meet at the given
    angle, and a weaker one above or below it."""
    apex = middles[L1 + 1] + rng.uniform(-25, 25)
    width = 55.0
    steepest = width * np.exp(-0.5)  # of width**2 * gaussian, per radian
    amplitude = np.tan(np.radians(person.scoliosis_degrees) / 2) * width**2 / steepest
    other = apex + rng.choice([-1, 1]) * rng.uniform(75, 100)
    bow = np.exp(-0.5 * ((s - apex) / width) ** 2) + person.counter_curve * np.exp(-0.5 * ((s - other) / 40.0) ** 2)
    return amplitude * bow, bow
