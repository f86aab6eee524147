"""One body: the spine of a person with everything around it, and the truth about its discs.

A body knows which tissue is at a point and nothing of scanners. All sides are drawn for the unflipped person; a
flipped one is the same body looked up in mirrored coordinates, so that mirroring is exact down to the texture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..labels import N_LEVELS
from .canal import paint_canal, paint_foramina, root_map, trapezoid_profile
from .curve import STEP
from .neural_arch import paint_neural_arch, paint_ribs
from .person import Person
from .profiles import L1, L5, N_VERTEBRAE, S1, Spine, build_spine
from .surroundings import paint_surroundings, smooth_fields
from .texture import grain
from .tissue import Canvas, Tissue, TissueCanvas
from .vertebra import paint_bodies

_STREAM_BODY = 31


@dataclass(frozen=True)
class DiscTruth:
    """Where the discs are, LPS mm; first axis is the level in `labels.LEVELS` order.

    Parameters
    ----------
    centre, posterior, canal : ndarray, shape (5, 3)
        Middle of the disc, its posterior margin in the midline, middle of the sac at disc height.
    normal : ndarray, shape (5, 3)
        Unit normal of the disc's plane, pointing to the head.
    foramen, recess : ndarray, shape (5, 2, 3)
        Left and right neural foramen and lateral recess.
    chain : ndarray, shape (8, 3)
        `canal` with its neighbours: T11/T12, T12/L1, the five, and S1/S2, where it is the sacral canal's middle.
    """

    centre: np.ndarray
    posterior: np.ndarray
    canal: np.ndarray
    normal: np.ndarray
    foramen: np.ndarray
    recess: np.ndarray
    chain: np.ndarray


class Points:
    """A list of points in straightened anatomical coordinates: flat float32 arrays of one length.

    `s`, `u`, `v` and `abs_u = |u|` in mm; `index` into the spine's profiles; `side` 0 left, 1 right; `grain`, `clouds`
    and `slow` are noise of about 1, 2 to 8 and 20 mm.
    """

    def __init__(self, s, u, v, index, grain, clouds, slow):
        self.s, self.u, self.v, self.index = s, u, v, index
        self.grain, self.clouds, self.slow = grain, clouds, slow
        self.abs_u = np.abs(u)
        self.side = (u < 0).astype(np.int8)

    def at(self, profile: np.ndarray) -> np.ndarray:
        """A profile of the spine at each point."""
        return profile.take(self.index)

    def select(self, chosen: np.ndarray) -> Points:
        """Those of the points at these places of the list."""
        return Points(
            *(a.take(chosen) for a in (self.s, self.u, self.v, self.index, self.grain, self.clouds, self.slow))
        )


@dataclass(frozen=True)
class Body:
    """A person's anatomy in the patient frame (LPS mm, the origin near L3).

    Built by `build_body`. In the comments, "profile" is an array over the samples of the spine's curve, "vertebrae"
    an array over `profiles.VERTEBRAE`; lengths in mm.
    """

    person: Person
    spine: Spine
    truth: DiscTruth
    origin: np.ndarray  # LPS of the body's own origin
    shift: np.ndarray  # (3,) place in the noise volume
    roots: np.ndarray  # cauda equina, see `canal.root_map`
    trapezoid: np.ndarray  # profile: 0 round sac, 1 triangular
    streaks: np.ndarray  # profile: fat in the muscles
    wing: np.ndarray  # profile: half width of the sacrum's wings
    wing_depth: np.ndarray  # profile: half their depth
    sacrum_top: float  # position of the top of S1
    spinous_length: np.ndarray  # vertebrae
    spinous_half: np.ndarray  # vertebrae: half the height of the spinous process
    hollow: np.ndarray  # vertebrae: depth of the end-plates' hollow
    marrow: np.ndarray  # vertebrae: relative deviation of the signal
    fatty: np.float32  # share of fatty marrow
    nucleus: np.ndarray  # vertebrae: signal of the disc below, 0 annulus to 1 young nucleus
    psoas: np.ndarray  # vertebrae: radius
    half_widths: np.ndarray  # vertebrae
    depths: np.ndarray  # vertebrae
    belly: float  # added to the depth of the belly
    back_line: np.ndarray  # profile: y that the skin of the back follows
    bladder: float  # half its height
    rectum: np.ndarray  # (3,) its middle
    schmorl_depth_share: float  # Schmorl's nodes: share of the depth from behind
    ilium_offset: float  # how far behind the usual the iliac wings lie
    ilium_height: float  # and how much higher the crest
    septa: float  # how much they show in the fat under the skin
    herniation_at: np.ndarray  # levels: u of the focal herniations
    removed: np.ndarray  # vertebrae: True after laminectomy
    haemangioma: tuple[float, float, float, float]  # u, v, s from the vertebra's middle, radius

    def to_own(self, points: np.ndarray) -> np.ndarray:
        """LPS mm (..., 3) to the body's own frame, in which it is never flipped."""
        own = np.asarray(points, dtype=np.float64) - self.origin
        if self.person.flipped:
            own = own * np.array([-1.0, 1.0, 1.0])
        return own

    def tissue_at(self, points: np.ndarray) -> np.ndarray:
        """`Tissue` numbers (uint8, shape (...)) at LPS points (..., 3)."""
        points = np.asarray(points, dtype=np.float64)
        flat = points.reshape(-1, 3)
        canvas = TissueCanvas(len(flat))
        self.paint(smooth_fields(self, self.to_own(flat)), canvas)
        return canvas.value.reshape(points.shape[:-1])

    def paint(self, fields: dict[str, np.ndarray], canvas: Canvas) -> None:
        """Paint the whole body on points given by their smooth fields (see `surroundings.smooth_fields`)."""
        fields = {name: np.asarray(field, dtype=np.float32) for name, field in fields.items()}
        x, y, z = fields["x"], fields["y"], fields["z"]
        fine = grain(x, y, z, 1.0, self.shift)
        coarse = grain(x, y, z * 0.6, 0.85, self.shift[[2, 0, 1]], smooth=True)
        paint_surroundings(self, fields, fine, coarse, canvas)
        s, u, v, slow = (fields[name] for name in ("s", "u", "v", "gut"))
        near = (np.abs(v - 5) < 60) & (np.abs(u) < 62) & (s > 0) & (s < self.spine.curve.length)
        chosen = np.flatnonzero(near)
        if not len(chosen):
            return
        s, u, v, slow, fine, coarse = (field.take(chosen) for field in (s, u, v, slow, fine, coarse))
        straight, v, index = self.spine.straighten(s, v)
        part = canvas.select(chosen)
        self._paint_spine(Points(straight, u, v, index, fine, 0.6 * coarse + 0.6 * slow, slow), part)
        canvas.put_back(chosen, part)

    def _paint_spine(self, p: Points, canvas: Canvas) -> None:
        wing = p.at(self.wing)
        for region, painter in (
            ((p.abs_u > 19) & (p.s < self.spine.middles[L1] + 20) & (np.abs(p.v - 10) < 18), paint_ribs),
            ((p.v > -2) & (p.v < 30) & (p.abs_u < 26), paint_canal),
            ((p.abs_u < np.maximum(wing + 3, 34)) & (p.v > -30), paint_neural_arch),
            ((p.v > -12) & (p.v < 20) & (p.abs_u > 6) & (p.abs_u < 34), paint_foramina),
            ((p.v < 10) & (p.v > -48) & (p.abs_u < 36), paint_bodies),
        ):
            chosen = np.flatnonzero(region)
            if len(chosen):
                part = canvas.select(chosen)
                painter(self, p.select(chosen), part)
                canvas.put_back(chosen, part)


def build_body(person: Person) -> Body:
    """Lay out a person's body; the same person always gives the same body."""
    upright = person.mirrored() if person.flipped else person
    rng = np.random.default_rng([person.seed, _STREAM_BODY])
    spine = build_spine(upright, rng)
    size, n = upright.stature, len(spine.vertebra)
    s = np.arange(n) * STEP
    shift = rng.uniform(0, 128, 3)
    origin = np.array([0.0, 0.0, 0.0]) + rng.uniform(-1, 1, 3) * [12, 20, 25]
    origin[0] *= -1 if person.flipped else 1
    fat_share = np.clip(
        0.004 * (upright.age - 25) + 0.006 * upright.fat_mm / 2 + 0.1 * rng.standard_normal(), 0.05, 0.5
    )
    low_down = np.clip((s - spine.middles[L1]) / (spine.middles[S1] - spine.middles[L1]), -0.3, 1.3)
    nucleus = np.full(N_VERTEBRAE, 0.75) + 0.08 * rng.standard_normal(N_VERTEBRAE) - 0.3 * upright.degeneration.mean()
    nucleus[L1 : L1 + N_LEVELS] = 1.0 - 1.05 * upright.degeneration + 0.05 * rng.standard_normal(N_LEVELS)
    nucleus[S1:] = rng.uniform(0.1, 0.8, N_VERTEBRAE - S1)
    lumbarised, sacralised = max(upright.transition, 0.0), max(-upright.transition, 0.0)
    nucleus[L5] *= 1 - 0.7 * sacralised
    nucleus[S1] += min(1.5 * lumbarised, 1) * (0.85 - nucleus[S1])
    wing_knots = spine.middles[[S1 - 1, S1, S1 + 1, S1 + 2, S1 + 3, S1 + 5]]
    wing = np.interp(s, wing_knots, np.array([50, 55, 50, 40, 26, 8]) * size)
    spinous = np.array([*[26.0] * 6, 28, 30, 30, 28, 22, 10, 8, 6, 4, 2, 2])
    spinous_half = np.array([*[7.0] * 6, 9.5, 11, 11, 10, 8, 9, 8, 7, 6, 5, 5])
    removed = np.zeros(N_VERTEBRAE, dtype=bool)
    removed[L1 : L1 + N_LEVELS] = upright.laminectomy
    spinous[S1] += 14 * lumbarised
    top = float(spine.disc_middles[S1 - 1] + spine.disc_halves[S1 - 1])
    return Body(
        person=person,
        spine=spine,
        truth=_truth(upright, spine, origin, person.flipped),
        origin=origin,
        shift=shift,
        roots=root_map(spine.curve.length, float(s[np.argmax(spine.cord < 0.5)]), rng),
        trapezoid=trapezoid_profile(n, float(spine.middles[L5])),
        streaks=(fat_share * (0.7 + 0.9 * low_down) + 0.15).astype(np.float32),
        wing=wing.astype(np.float32),
        wing_depth=_float32(np.interp(s, wing_knots, np.array([15, 16, 12, 8, 5, 3]) * size)),
        sacrum_top=float(
            np.interp(
                upright.transition,
                [-0.6, -0.2, 0.2, 0.6],
                [spine.middles[L5] - 4, top, top, spine.middles[S1] + 0.5 * spine.halves[S1]],
            )
        ),
        spinous_length=_float32(spinous * size * rng.uniform(0.85, 1.15, N_VERTEBRAE)),
        spinous_half=_float32(spinous_half * size * rng.uniform(0.85, 1.12, N_VERTEBRAE)),
        hollow=_float32(np.where(np.arange(N_VERTEBRAE) < S1, rng.uniform(0.8, 2.4, N_VERTEBRAE), 0.3) * size),
        marrow=_float32(0.05 * rng.standard_normal(N_VERTEBRAE)),
        fatty=np.float32(np.clip(0.008 * (upright.age - 35) + 0.12 * rng.standard_normal(), 0, 0.6)),
        nucleus=_float32(np.clip(nucleus, 0.03, 1.0)),
        psoas=_psoas(size, rng),
        half_widths=spine.curve.at(spine.half_width, spine.middles),
        depths=spine.curve.at(spine.depth, spine.middles),
        belly=float(0.6 * min(upright.fat_mm, 70) + upright.girth_mm - 15 + 12 * rng.standard_normal()),
        back_line=ndimage.gaussian_filter1d(spine.curve.y, 40 / STEP, mode="nearest"),
        bladder=float(rng.uniform(6, 42)),
        rectum=spine.place(spine.middles[S1 + 3] + rng.uniform(-12, 12), rng.uniform(-8, 8), -30 - rng.uniform(0, 8)),
        schmorl_depth_share=float(rng.uniform(0.35, 0.65)),
        ilium_offset=float(rng.normal(0, 4)),
        ilium_height=float(rng.normal(0, 8)),
        septa=float(rng.uniform(0.05, 0.4)),
        herniation_at=_float32(upright.herniation_at_mm),
        removed=removed,
        haemangioma=(rng.uniform(-8, 8), -rng.uniform(10, 22), rng.uniform(-5, 5), rng.uniform(4, 8)),
    )


def _psoas(size: float, rng: np.random.Generator) -> np.ndarray:
    radius = np.array([0, 0, 0, 0, 0, 2, 7, 11, 15, 18, 19, 17, 15, 13, 12, 10, 8.0])
    return radius * size * rng.uniform(0.85, 1.15)


def _float32(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)


def _truth(person: Person, spine: Spine, origin: np.ndarray, flipped: bool) -> DiscTruth:
    levels = np.arange(L1, L1 + N_LEVELS)
    s, chain_s = spine.disc_middles[levels], spine.disc_middles[L1 - 2 : S1 + 1]
    size = person.stature

    def profile(values: np.ndarray, at: np.ndarray) -> np.ndarray:
        return spine.curve.at(values.astype(np.float64), at)

    depth, posterior = profile(spine.depth, s), profile(spine.posterior, s)
    # The sac may end above S1/S2.
    front = np.where(
        np.arange(len(chain_s)) < N_LEVELS + 2, profile(spine.sac_front, chain_s), profile(spine.posterior, chain_s)
    )
    back = np.where(
        np.arange(len(chain_s)) < N_LEVELS + 2, profile(spine.sac_back, chain_s), profile(spine.canal_back, chain_s)
    )
    middle = (front + back) / 2
    sides = np.array([1.0, -1.0])
    out = 0.5 * (profile(spine.canal_half, s) + profile(spine.pedicle_centre, s) + profile(spine.pedicle_half, s)) + 1
    foramen_s = s[:, None] - 5.5 * size + np.zeros(2)
    beside = np.maximum(profile(spine.sac_half, s), 7 * size) + 1.6 * size
    front = np.minimum(profile(spine.sac_front, s), 2) + 3.3 * size
    angle, tilt = spine.disc_angles[levels], profile(spine.curve.tilt, s)
    normal = np.stack([-np.sin(tilt), -np.cos(tilt) * np.sin(angle), np.cos(tilt) * np.cos(angle)], axis=1)
    points = {
        "centre": spine.place(s, 0.0, posterior - depth / 2),
        "posterior": spine.place(s, 0.0, posterior),
        "canal": spine.place(s, 0.0, middle[2:-1]),
        "chain": spine.place(chain_s, 0.0, middle),
        "foramen": spine.place(foramen_s, out[:, None] * sides, np.full((N_LEVELS, 2), 4.0 * size)),
        "recess": spine.place(s[:, None] + np.zeros(2), beside[:, None] * sides, front[:, None] + np.zeros(2)),
    }
    mirror = np.array([-1.0, 1.0, 1.0]) if flipped else np.ones(3)
    placed = {name: value * mirror + origin for name, value in points.items()}
    if flipped:
        placed["foramen"], placed["recess"] = placed["foramen"][:, ::-1], placed["recess"][:, ::-1]
    return DiscTruth(**placed, normal=normal * mirror)


__all__ = ["Body", "DiscTruth", "Tissue", "build_body"]
