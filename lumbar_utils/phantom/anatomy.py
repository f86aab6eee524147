"""One body: the spine of a person with everything around it, and the truth about its discs.

A body knows which tissue is at a point and nothing of scanners. All sides are drawn for the unflipped person; a
flipped one is the same body looked up in mirrored coordinates, so that mirroring is exact down to the texture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..labels import N_LEVELS
from .canal import paint_canal, paint_foramina, root_map
from .neural_arch import paint_neural_arch, paint_ribs
from .person import L1, L5, N_VERTEBRAE, S1, Person
from .profiles import Spine, float32
from .surroundings import paint_surroundings
from .texture import grain
from .tissue import Canvas
from .vertebra import paint_bodies

_STREAM_BODY = 31
_SPINOUS_LENGTH = np.array([*[26.0] * 6, 28, 30, 30, 28, 22, 10, 8, 6, 4, 2, 2])
_SPINOUS_HALF = np.array([*[7.0] * 6, 9.5, 11, 11, 10, 8, 9, 8, 7, 6, 5, 5])
_PSOAS = np.array([0, 0, 0, 0, 0, 2, 7, 11, 15, 18, 19, 17, 15, 13, 12, 10, 8.0])
_FACET_TURN = np.array([0.37, 0.28, 0.13, 0.0, -0.13])  # radians; joints are more sagittal further up (Panjabi 1993)


@dataclass(frozen=True)
class DiscTruth:
    """Where the discs are, LPS mm; first axis is the level in `labels.LEVELS` order."""

    centre: np.ndarray  # (5, 3) middle of the disc
    posterior: np.ndarray  # (5, 3) its posterior margin in the midline
    canal: np.ndarray  # (5, 3) middle of the sac at disc height
    normal: np.ndarray  # (5, 3) unit normal of the disc's plane, pointing to the head
    foramen: np.ndarray  # (5, 2, 3) left and right neural foramen
    recess: np.ndarray  # (5, 2, 3) left and right lateral recess
    chain: np.ndarray  # (8, 3) `canal` with its neighbours T11/T12, T12/L1, S1/S2, there the sacral canal's middle

    @property
    def places(self) -> np.ndarray:
        """Where each target is: (5 conditions, 5 levels, 3)."""
        return np.stack([self.canal, *self.foramen.swapaxes(0, 1), *self.recess.swapaxes(0, 1)])


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
        fields = (self.s, self.u, self.v, self.index, self.grain, self.clouds, self.slow)
        return Points(*(field.take(chosen) for field in fields))


class Body:
    """A person's anatomy in the patient frame (LPS mm, the origin near L3); the same person always has the same body.

    "Profile" is an array over the samples of the spine's curve, "vertebrae" one over `person.VERTEBRAE`; mm.
    """

    def __init__(self, person: Person):
        self.person = person
        upright = person.mirrored() if person.flipped else person
        rng = np.random.default_rng([person.seed, _STREAM_BODY])
        self.spine = Spine(upright, rng)
        self.shift = rng.uniform(0, 128, 3)  # place in the noise volume
        self.mirror = np.array([-1.0 if person.flipped else 1.0, 1, 1])
        self.origin = rng.uniform(-1, 1, 3) * [12, 20, 25] * self.mirror  # LPS of the body's own origin
        self.truth = _truth(self.spine, self.origin, self.mirror)
        self._vary_spine(upright, rng)
        self._vary_surroundings(upright, rng)

    def _vary_spine(self, person: Person, rng: np.random.Generator) -> None:
        """What a painter of the spine needs beside the profiles."""
        spine, size = self.spine, person.stature
        s, middles = spine.s, spine.middles
        lumbarised, sacralised = max(person.transition, 0.0), max(-person.transition, 0.0)
        fat = 0.004 * (person.age - 25) + 0.006 * person.fat_mm / 2 + 0.1 * rng.standard_normal()
        low_down = np.clip((s - middles[L1]) / (middles[S1] - middles[L1]), -0.3, 1.3)
        self.streaks = float32(np.clip(fat, 0.05, 0.5) * (0.7 + 0.9 * low_down) + 0.15)  # profile: fat in the muscles

        nucleus = 0.75 + 0.08 * rng.standard_normal(N_VERTEBRAE) - 0.3 * person.degeneration.mean()
        nucleus[L1:S1] = 1.0 - 1.05 * person.degeneration + 0.05 * rng.standard_normal(N_LEVELS)
        nucleus[S1:] = rng.uniform(0.1, 0.8, N_VERTEBRAE - S1)
        nucleus[L5] *= 1 - 0.7 * sacralised
        nucleus[S1] += min(1.5 * lumbarised, 1) * (0.85 - nucleus[S1])
        self.nucleus = float32(np.clip(nucleus, 0.03, 1.0))  # vertebrae: the disc below, 0 annulus to 1 young nucleus

        knots = middles[[S1 - 1, S1, S1 + 1, S1 + 2, S1 + 3, S1 + 5]]
        # Profiles: half width and half depth of the sacrum's wings
        self.wing = float32(np.interp(s, knots, np.array([50, 55, 50, 40, 26, 8]) * size))
        self.wing_depth = float32(np.interp(s, knots, np.array([15, 16, 12, 8, 5, 3]) * size))
        top = spine.disc_middles[L5] + spine.disc_halves[L5]
        tops = [middles[L5] - 4, top, top, middles[S1] + 0.5 * spine.halves[S1]]
        self.sacrum_top = float(np.interp(person.transition, [-0.6, -0.2, 0.2, 0.6], tops))  # position
        self.roots = root_map(spine.curve.length, float(s[np.argmax(spine.cord < 0.5)]), rng)
        self.trapezoid = float32(1 / (1 + np.exp(-(s - middles[L1 + 1]) / 20)))  # profile: 0 round sac, 1 triangular

        worn = np.full(N_VERTEBRAE, person.degeneration.mean())
        worn[L1:S1] = person.degeneration
        sides = (2, N_VERTEBRAE)
        # Facets of the disc below: angle of their long axis (radians), relative size, half width of the joint's fluid
        turn = 0.85 + 0.16 * rng.standard_normal(sides)
        turn[:, L1:S1] += _FACET_TURN
        swell = np.clip(0.92 + 0.22 * worn + 0.12 * rng.standard_normal(sides), 0.7, 1.4)
        fluid = 0.35 + 0.45 * rng.standard_exponential(sides) * (rng.random(sides) < 0.5)
        self.joints = float32([turn, swell, np.clip(fluid, 0.3, 1.8)])
        self.lamina_reach = float32(rng.uniform(0.35, 0.9, N_VERTEBRAE))  # discs: how far laminae close the gap behind
        # Foramina: width above and below, height, radius of the root, all relative
        spread = np.array([0.17, 0.55, 0.14, 0.18])[:, None, None]
        self.exits = float32(np.exp(spread * rng.standard_normal((4, *sides))))
        self.closing = float32(
            rng.uniform(-1.0, 0.6, sides)
        )  # what narrows them: 0 dark as ligament, 1 bright as marrow
        # Neural arch: thickness of the cortex in mm, share of dense bone inside, which goes with wear, fat behind it
        self.arch_cortex = np.float32(np.clip(1.15 + 0.45 * rng.standard_normal(), 0.6, 2.4))
        dense = 0.15 + 0.35 * worn + 0.25 * rng.standard_normal(sides)
        self.arch_dense = float32(np.clip(dense, 0, 0.9))
        self.arch_fat = np.float32(rng.uniform(0.3, 1.1))
        self.arch_pad = np.float32(rng.uniform(3, 9))  # its thickness in mm

        length = _SPINOUS_LENGTH.copy()
        length[S1] += 14 * lumbarised
        self.spinous_length = float32(length * size * rng.uniform(0.85, 1.15, N_VERTEBRAE))
        self.spinous_half = float32(_SPINOUS_HALF * size * rng.uniform(0.85, 1.12, N_VERTEBRAE))  # half the height
        hollow = np.where(np.arange(N_VERTEBRAE) < S1, rng.uniform(0.8, 2.4, N_VERTEBRAE), 0.3)
        self.hollow = float32(hollow * size)  # vertebrae: depth of the end-plates' hollow
        self.marrow = float32(0.05 * rng.standard_normal(N_VERTEBRAE))  # vertebrae: relative deviation of the signal
        fatty = 0.008 * (person.age - 35) + 0.12 * rng.standard_normal()
        self.fatty = np.float32(np.clip(fatty, 0, 0.6))  # share of fatty marrow
        self.removed = np.zeros(N_VERTEBRAE, dtype=bool)  # True after laminectomy
        self.removed[L1:S1] = person.laminectomy

    def _vary_surroundings(self, person: Person, rng: np.random.Generator) -> None:
        """What lies around the spine, and where lesions lie in it."""
        spine = self.spine
        self.psoas = _PSOAS * person.stature * rng.uniform(0.85, 1.15)  # vertebrae: radius
        # Added to the depth of the belly.
        self.belly = float(0.6 * min(person.fat_mm, 70) + person.girth_mm - 15 + 12 * rng.standard_normal())
        self.back_line = spine.smooth(spine.curve.y, 40)  # profile: y that the skin of the back follows
        self.half_widths, self.depths = (spine.curve.at(p, spine.middles) for p in (spine.half_width, spine.depth))
        self.bladder = rng.uniform(6, 42)  # half its height
        below, aside, front = rng.uniform(-12, 12), rng.uniform(-8, 8), rng.uniform(0, 8)
        self.rectum = spine.place(spine.middles[S1 + 3] + below, aside, -30 - front)  # its middle
        self.schmorl_depth_share = rng.uniform(0.35, 0.65)  # Schmorl's nodes: share of the depth from behind
        self.ilium_offset = rng.normal(0, 4)  # how far behind the usual the iliac wings lie
        self.ilium_height = rng.normal(0, 8)  # and how much higher the crest
        self.septa = rng.uniform(0.05, 0.4)  # how much they show in the fat under the skin
        self.herniation_at = float32(person.herniation_at_mm)  # levels: u of the focal herniations
        # u, v, s from the vertebra's middle, radius
        self.haemangioma = rng.uniform(-8, 8), -rng.uniform(10, 22), rng.uniform(-5, 5), rng.uniform(4, 8)

    def to_own(self, points: np.ndarray) -> np.ndarray:
        """LPS mm (..., 3) to the body's own frame, in which it is never flipped."""
        return (np.asarray(points, dtype=np.float64) - self.origin) * self.mirror

    def paint(self, fields: dict[str, np.ndarray], canvas: Canvas) -> None:
        """Paint the whole body on points given by their smooth fields, float32 (see `surroundings.smooth_fields`)."""
        x, y, z = fields["x"], fields["y"], fields["z"]
        fine = grain(x, y, z, 1.0, self.shift)
        coarse = grain(x, y, z * 0.6, 0.85, self.shift[[2, 0, 1]], smooth=True)
        # Fat lies in the muscles along their fibres.
        marbling = grain(x, y + 0.25 * z, z * 0.1, 0.7, self.shift[[1, 2, 0]], smooth=True)
        paint_surroundings(self, fields, fine, marbling, canvas)
        s, u, v, slow = (fields[name] for name in ("s", "u", "v", "gut"))
        near = (np.abs(v - 5) < 60) & (np.abs(u) < 62) & (s > 0) & (s < self.spine.curve.length)
        chosen = np.flatnonzero(near)
        if not len(chosen):
            return
        s, u, v, slow, fine, coarse = (field.take(chosen) for field in (s, u, v, slow, fine, coarse))
        straight, u, v, index = self.spine.straighten(s, u, v)
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


def _truth(spine: Spine, origin: np.ndarray, mirror: np.ndarray) -> DiscTruth:
    """The truth from the spine's profiles; `mirror` and `origin` lead from the body's frame to the patient's."""
    size, levels = spine.size, np.arange(L1, S1)
    s, chain_s = spine.disc_middles[levels], spine.disc_middles[L1 - 2 : S1 + 1]

    def at(profile: np.ndarray, position: np.ndarray) -> np.ndarray:
        return spine.curve.at(profile.astype(np.float64), position)

    def place(*suv: float | np.ndarray) -> np.ndarray:
        return spine.place(*suv) * mirror + origin

    depth, posterior = at(spine.depth, s), at(spine.posterior, s)
    # The sac may end above S1/S2.
    in_sac = np.arange(len(chain_s)) < N_LEVELS + 2
    front = np.where(in_sac, at(spine.sac_front, chain_s), at(spine.posterior, chain_s))
    back = np.where(in_sac, at(spine.sac_back, chain_s), at(spine.canal_back, chain_s))
    chain = place(chain_s, 0.0, (front + back) / 2)
    sides = np.array([1.0, -1.0]) * mirror[0]
    out = 0.5 * (at(spine.canal_half, s) + at(spine.pedicle_centre, s) + at(spine.pedicle_half, s)) + 1
    # The front corner of the sac
    beside = np.maximum(1.12 * at(spine.sac_half, s), 6.5 * size)
    behind = np.minimum(at(spine.sac_front, s), 2) + 2.6 * size
    angle, tilt = spine.disc_angles[levels], at(spine.curve.tilt, s)
    normal = np.stack([-np.sin(tilt), -np.cos(tilt) * np.sin(angle), np.cos(tilt) * np.cos(angle)], axis=1)
    return DiscTruth(
        centre=place(s, 0.0, posterior - depth / 2),
        posterior=place(s, 0.0, posterior),
        canal=chain[2:-1],
        normal=normal * mirror,
        foramen=place(s[:, None] - 6.5 * size, out[:, None] * sides, 4.0 * size),
        recess=place(s[:, None], beside[:, None] * sides, behind[:, None]),
        chain=chain,
    )
