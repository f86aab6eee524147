"""The spinal canal and its exits: sac, cord, roots, epidural fat, flavum, lateral recesses, foramina."""

from __future__ import annotations

import numpy as np

from .person import L1, S1
from .tissue import Tissue, edge

ROOT_CELLS = 64
ROOT_LAYER_MM = 4.0
ROOT_REACH = 1.2
"""The map of the roots goes this far from the middle of the sac, in its half axes."""


def root_map(length: float, conus_s: float, rng: np.random.Generator) -> np.ndarray:
    """Where the roots of the cauda equina lie in the sac: (layers along s, cells across, cells back), float32 0..1.

    In a patient lying on the back the roots sink; they leave in pairs, so fewer are left further down.
    """
    layers = int(length / ROOT_LAYER_MM) + 1
    s = np.arange(layers) * ROOT_LAYER_MM
    n = 11
    side = np.where(np.arange(2 * n) % 2 == 0, 1.0, -1.0)
    order = np.repeat(np.arange(n), 2) / n
    # Pair `order` leaves the sac at a depth that grows with it; before that it runs ever more to the side.
    leaves = conus_s + 25 + order * 210
    run = np.clip((s[:, None] - conus_s) / np.maximum(leaves - conus_s, 1), 0, 1.05)
    wobble = rng.normal(0, 0.05, (layers, 2 * n)).cumsum(axis=0)
    wobble -= np.linspace(0, 1, layers)[:, None] * wobble[-1:]
    start_u, start_v = rng.uniform(0.05, 0.5, 2 * n), rng.uniform(0.1, 0.75, 2 * n)
    u = side * (start_u + (0.95 - start_u) * run**2.5) + 0.4 * wobble
    v = start_v - (start_v + 0.1) * run**3 + 0.4 * np.roll(wobble, 3, axis=1)
    present = ((run < 1.0) & (s[:, None] > conus_s - 25)).astype(np.float64)
    cell = ((np.arange(ROOT_CELLS) + 0.5) / ROOT_CELLS * 2 - 1) * ROOT_REACH
    width = rng.uniform(0.04, 0.065, 2 * n)
    across = np.exp(-0.5 * ((cell - u[..., None]) / width[:, None]) ** 2) * present[..., None]
    back = np.exp(-0.5 * ((cell - v[..., None]) / (1.15 * width[:, None])) ** 2)
    return np.clip(np.einsum("lru,lrv->luv", across, back) * 1.1, 0, 1).astype(np.float32)


class Section:
    """The canal's cross-section at each point of a list, mm.

    At the height of a disc it is a triangle: in front the disc, behind the two ligamenta flava, which meet at the
    midline and run forward and outward to the front corners, the lateral recesses. At the height of a lamina it is
    wide, under a flat roof. Narrowed recesses close from the corner, by the facet behind and the disc in front.

    Attributes
    ----------
    near : ndarray
        1 at the height of a disc, 0 at a lamina's.
    front, back : ndarray
        Of the sac, in the midline.
    fat : ndarray
        How much of the room between the flava is fat, which stays when the sac is squeezed, 0 to 1.
    broad : ndarray
        Half the width of the sac's front on the point's side.
    closing : ndarray
        How far the wall of a narrowed recess comes forward.
    roof : ndarray
        v of the outer face of the flavum, or of the lamina, at the point's |u|.
    tilt : ndarray
        Length of the gradient of `v - roof`, by which it becomes a distance.
    sac : ndarray
        Distance from the sac's outline.
    """

    def __init__(self, body, p):
        spine, size = body.spine, np.float32(body.person.stature)
        # In a narrow canal the sac keeps some width: it becomes a slit, not a dot.
        recess = spine.recess[p.side, p.index] * (1 - 0.6 * p.at(spine.crowding))
        self.near = p.at(spine.interlaminar)
        triangle = p.at(body.trapezoid) * (0.3 + 0.7 * self.near)
        self.front, self.back = p.at(spine.sac_front), p.at(spine.sac_back)
        half = p.at(spine.sac_half)
        inner = p.at(spine.canal_back) - 1.5 * p.at(spine.flavum)
        # Between the flava the sac's back shares the room with a wedge of fat.
        self.fat = p.at(spine.dorsal_fat)
        self.back = self.back + (0.85 - 0.75 * self.fat) * triangle * np.maximum(inner - self.back - 0.8, 0)
        deep = np.maximum(self.back - self.front, 0.6)
        self.broad = np.maximum(half * (1 + 0.32 * triangle) * (1 - 0.40 * recess * (0.4 + 0.6 * self.near)), 0.3)
        rounded = np.sqrt(p.u * p.u + 2.5) - np.float32(1.2) + 0.6 * p.slow + 0.25 * p.clouds
        corner = (p.abs_u - 0.85 * self.broad) / (0.4 * self.broad + 1.0)
        self.closing = closing = (6.0 * size) * recess * self.near * np.exp(-corner * corner)

        steep = np.clip((inner - self.front) / (self.broad + 0.5 * size), 0.5, 2.4)
        slope = 0.5 + self.near * (steep - 0.5)
        self.tilt = np.sqrt(1 + slope * slope)
        self.roof = p.at(spine.canal_back) - slope * rounded - closing

        height = 2 * (p.v - self.front) / deep - 1
        ellipse = p.u / self.broad
        ellipse = (np.sqrt(ellipse * ellipse + height * height) - 1) * np.minimum(self.broad, deep / 2)
        side = deep / self.broad
        sides = (p.v - self.back + side * rounded + closing) / np.sqrt(1 + side * side)
        sharp = np.minimum(2.2 * size, 0.35 * deep)
        wedge = _smooth_max(self.front - p.v, sides, sharp)
        self.sac = np.where(half < 1.2, 5, ellipse + triangle * (wedge - ellipse))
        # Where the roots lie: on the unit disc, however the sac is shaped.
        back = np.clip((1 - height) / 2, 0.08, 1)
        self.height = height + triangle * (1 - 2 * back * back - height)
        wide = np.sqrt(np.maximum(1 - self.height * self.height, 0.04))
        self.across = p.u / (self.broad * (1 + triangle * (back / wide - 1)))


def _smooth_max(a: np.ndarray, b: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """The larger of two distances, with a rounded edge where they meet."""
    h = np.maximum(radius - np.abs(a - b), 0)
    return np.maximum(a, b) + h * h / (4 * radius)


def paint_canal(body, p, canvas) -> None:
    """Everything between the back of the bodies and the laminae, sac included, and the lateral recesses."""
    section = Section(body, p)
    _paint_fat_and_flavum(body, p, section, canvas)
    _paint_recesses(body, p, canvas)
    _paint_sac(body, p, section, canvas)


def _paint_fat_and_flavum(body, p, section, canvas) -> None:
    """Epidural fat, which stenosis drives out, and the ligamentum flavum inside the roof of the laminae."""
    spine, size, soft = body.spine, body.person.stature, canvas.softness
    fill = p.at(spine.crowding)
    half = p.at(spine.canal_half)
    dorsal = section.fat * np.clip((p.v - section.front) / (0.5 * (section.back - section.front) + 1) - 0.5, 0, 1)
    shut = np.clip(0.55 * fill + 0.9 * spine.recess[p.side, p.index], 0, 1) * (1 - dorsal)
    inside = (p.v - section.roof) / section.tilt
    canal = edge(np.maximum(p.abs_u - half - 1, inside), soft)
    canvas.paint_mixture(canal, shut, Tissue.EPIDURAL_FAT, Tissue.LIGAMENT, 0.08 * p.clouds)

    thick = p.at(spine.flavum)
    # The two flava leave a gap in the midline, where fat shows until stenosis closes it.
    midline = np.exp(-((p.abs_u / (2.0 * size)) ** 2)) * (1 - fill * (1 - section.fat))
    # Where a recess is closed, the capsule of the overgrown joint fills what lies between flavum and bone.
    band = np.maximum(-inside - thick * (1 - 0.8 * midline), inside - 0.5 - section.closing)
    band = np.maximum(np.maximum(band, p.abs_u - half - 3), 1 - thick)
    canvas.paint(edge(band, soft), Tissue.LIGAMENT, 0.1 * p.grain)


def _paint_recesses(body, p, canvas) -> None:
    """The root below the disc, in fat between the sac, the body and the pedicle."""
    spine, size = body.spine, body.person.stature
    recess, disc = spine.recess[p.side, p.index], p.at(spine.disc)
    below = p.s - p.at(spine.disc_middle)
    # The root of S1 has left the sac before its disc.
    height = np.where(disc == S1 - 1, np.float32(3), np.float32(13)) * size
    near = np.exp(-0.5 * ((below - height) / (5 * size)) ** 2) * ((disc >= L1) & (disc < S1))
    at_u = np.maximum(p.at(spine.sac_half), (7 * size)) + (2.2 * size) - 1.0 * recess
    at_v = np.minimum(p.at(spine.sac_front), 2) + (3.0 * size) + 0.5 * recess
    du, dv = p.abs_u - at_u, p.v - at_v
    deep = (4.4 * size) * (1 - 0.8 * recess)
    room = (np.sqrt((du / ((4.6 * size) * (1 - 0.6 * recess))) ** 2 + (dv / deep) ** 2) - 1) * deep
    shut = 0.6 * p.at(spine.crowding)
    canvas.paint_mixture(edge(room, 0.8) * near, shut, Tissue.EPIDURAL_FAT, Tissue.LIGAMENT)
    flat = np.minimum(1.6 * size, deep * 0.9)
    root = np.sqrt((du / (1.7 * size)) ** 2 + (dv / flat) ** 2) - 1
    canvas.paint(edge(root * flat, 0.8) * near, Tissue.ROOT)


def _paint_sac(body, p, section, canvas) -> None:
    """Dura, CSF, roots, cord."""
    spine, soft = body.spine, canvas.softness
    fill = p.at(spine.crowding)
    canvas.paint(edge(section.sac - 0.45, soft), Tissue.LIGAMENT)
    layer = np.clip((p.s * (1 / ROOT_LAYER_MM)).astype(np.intp), 0, len(body.roots) - 1)
    column, row = (
        np.clip((c + ROOT_REACH) * (ROOT_CELLS / (2 * ROOT_REACH)), 0, ROOT_CELLS - 1).astype(np.intp)
        for c in (section.across, section.height)
    )
    strands = body.roots.ravel().take((layer * ROOT_CELLS + column) * ROOT_CELLS + row)
    mix = np.clip(strands * (0.8 + fill) + fill * (0.92 + 0.10 * p.grain), 0, 1)
    inside = edge(section.sac + 0.2, soft)
    canvas.paint_mixture(inside, mix, Tissue.CSF, Tissue.ROOT, 0.04 * p.clouds)
    radius = p.at(spine.cord)
    if radius.max(initial=0) > 0:
        middle = (section.front + section.back) / 2
        cord = np.sqrt((p.u / 1.25) ** 2 + (p.v - middle - 0.9) ** 2) - radius
        canvas.paint(edge(cord, soft) * inside * (radius > 0.2), Tissue.CORD, 0.04 * p.grain)


def paint_foramina(body, p, canvas) -> None:
    """Keyholes between the pedicles: wide above, with the root in fat, narrow below between disc and facet.

    Narrowing closes the lower part first, then the fat around the root; a collapsed disc lowers the whole.
    """
    spine, size = body.spine, np.float32(body.person.stature)
    soft = canvas.softness
    disc = p.at(spine.disc)
    narrow = np.where(disc >= L1, spine.foramen[p.side, p.index], np.float32(0.1))
    narrow = np.clip(1.7 * narrow - 0.27, 0, 1)
    below = p.s - p.at(spine.disc_middle)
    inner = p.at(spine.canal_half)
    outer = p.at(spine.pedicle_centre) + p.at(spine.pedicle_half)
    # The way out runs outward, forward and down.
    out = np.clip(p.abs_u - inner, -4, 16)
    front = np.minimum(p.at(spine.posterior), 0) - 0.10 * out + 0.3 * p.slow
    medial = inner + 4 * spine.recess[p.side, p.index]
    span = edge(np.maximum(medial - p.abs_u, p.abs_u - outer - 5), 5.0) * (disc < S1)
    flare = 1 + 0.03 * np.clip(p.abs_u - outer, 0, 10)
    half = np.minimum(p.at(spine.disc_half), 6 * size)
    above_width, below_width, tall, root_size = (values[p.side, disc] for values in body.exits)
    top = -half - (6.4 * size) * tall + 0.12 * out
    # Even in a wide one the disc and the facet leave a slit below, or nothing.
    bottom = half * 0.9 - (0.5 * size) * (3 - 2 * below_width) - narrow * (8.5 * size)
    upper = (4.9 * size) * above_width * (1 - 0.72 * narrow) * flare
    lower = (1.6 * size) * below_width * np.clip(1 - 1.9 * narrow, 0.05, 1)
    along = np.clip((below - top) / np.maximum(bottom - top, 1), 0, 1)
    radius = upper + (lower - upper) * along
    middle = front + (4.6 * size) + along * (0.8 * size)
    ds = below - top - along * np.maximum(bottom - top, 1)
    dv = p.v - middle
    hole = np.sqrt(ds * ds + dv * dv) - radius + 0.5 * p.slow + 0.35 * p.clouds
    whole = np.sqrt((np.maximum(np.abs(below + 5 * size) - 8 * size, 0)) ** 2 + dv * dv) - 6.2 * size
    # What closes it is the bulging disc in front and the overgrown facet behind, not a capsule of its own.
    closing = np.clip(narrow * 3.0 - 0.1, 0, 1)
    behind = np.clip(0.5 + (dv + 0.5 * size) * 0.4, 0, 1)
    bright = np.clip(behind * (body.closing[p.side, disc] + 0.3 * p.slow) + 0.2 * p.clouds, 0, 1)
    canvas.paint_mixture(edge(whole, 3.0) * span * closing, bright, Tissue.LIGAMENT, Tissue.MARROW, 0.15 * p.clouds)
    canvas.paint(edge(hole - 0.5, soft) * span, Tissue.LIGAMENT)
    gone = np.clip(2.5 * narrow - 1.4, 0, 1)
    canvas.paint_mixture(edge(hole, soft) * span, gone, Tissue.EPIDURAL_FAT, Tissue.LIGAMENT, 0.10 * p.clouds)
    # The root fills the upper part the less the more fat is left, and is flattened at last.
    flat = np.minimum(2.4 * size * root_size, 0.85 * upper)
    root = np.sqrt(((below - top + 0.4 * size) / (2.8 * size * root_size)) ** 2 + ((dv + 0.4 * size) / flat) ** 2) - 1
    canvas.paint(edge(root * flat, soft) * span, Tissue.ROOT, 0.06 * p.grain)
    # Vessels beside it, some of them with flow and dark.
    for down, behind, thick, tissue in (
        (2.1, 3.1, 0.9, Tissue.VEIN),
        (4.5, 0.8, 0.8, Tissue.BLOOD),
        (-1.5, 2.2, 0.6, Tissue.BLOOD),
    ):
        vessel = np.sqrt((below - top - down * size - 0.8 * p.slow) ** 2 + (dv - behind * size) ** 2) - thick * size
        canvas.paint(edge(vessel, 1.0) * span * (1 - closing), tissue)
