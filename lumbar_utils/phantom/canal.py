"""The spinal canal and its exits: sac, cord, roots, epidural fat, flavum, lateral recesses, foramina."""

from __future__ import annotations

import numpy as np

from .person import L1, S1
from .tissue import Tissue, edge

ROOT_CELLS = 48
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
    width = rng.uniform(0.055, 0.085, 2 * n)
    across = np.exp(-0.5 * ((cell - u[..., None]) / width[:, None]) ** 2) * present[..., None]
    back = np.exp(-0.5 * ((cell - v[..., None]) / (1.15 * width[:, None])) ** 2)
    return np.clip(np.einsum("lru,lrv->luv", across, back) * 1.1, 0, 1).astype(np.float32)


def paint_canal(body, p, canvas) -> None:
    """Everything between the back of the bodies and the laminae, sac included, and the lateral recesses."""
    _paint_fat_and_flavum(body, p, canvas)
    _paint_recesses(body, p, canvas)
    _paint_sac(body, p, canvas)


def _paint_fat_and_flavum(body, p, canvas) -> None:
    """Epidural fat, which stenosis drives out, and the ligamentum flavum inside the roof of the laminae."""
    spine, size, soft = body.spine, body.person.stature, canvas.softness
    fill = p.at(spine.crowding)
    half = p.at(spine.canal_half)
    sloped = p.at(spine.canal_back) - 0.50 * p.abs_u
    shut = np.clip(0.8 * fill + 0.9 * spine.recess[p.side, p.index], 0, 1)
    canal = edge(np.maximum(p.abs_u - half - 1, p.v - sloped), soft)
    canvas.paint_mixture(canal, shut, Tissue.EPIDURAL_FAT, Tissue.LIGAMENT, 0.08 * p.clouds)

    thick = p.at(spine.flavum)
    # The two flava leave a gap in the midline, where fat shows until stenosis closes it.
    midline = np.exp(-((p.abs_u / (3.2 * size)) ** 2)) * (1 - fill)
    band = np.maximum(sloped - thick * (1 - 0.9 * midline) - p.v, p.v - sloped - 1)
    band = np.maximum(np.maximum(band, p.abs_u - half - 3), 1 - thick)
    canvas.paint(edge(band, soft), Tissue.LIGAMENT, 0.1 * p.grain)


def _paint_recesses(body, p, canvas) -> None:
    """A pocket beside the front of the sac: closed as far as the degree says, what stays open holds fat and a root."""
    spine, size = body.spine, body.person.stature
    recess, disc = spine.recess[p.side, p.index], p.at(spine.disc)
    below = p.s - p.at(spine.disc_middle)
    near_disc = np.exp(-0.5 * ((below - 2) / 8.5) ** 2) * ((disc >= L1) & (disc < S1))
    at_u = np.maximum(p.at(spine.sac_half), (7 * size)) + (1.6 * size) - 1.4 * recess
    at_v = np.minimum(p.at(spine.sac_front), 2) + (3.3 * size) + 0.8 * recess
    du, dv = p.abs_u - at_u, p.v - at_v

    pocket = np.sqrt((du / (5.8 * size)) ** 2 + (dv / (5.8 * size)) ** 2) - 1
    closing = np.clip(recess * 3.5 + 0.1, 0, 1)
    canvas.paint(edge(pocket * 4, 1.5) * near_disc * closing, Tissue.LIGAMENT, 0.1 * p.grain)
    wide, deep = (5.0 * size) * (1 - 0.75 * recess), (4.6 * size) * (1 - 0.88 * recess)
    room = (np.sqrt((du / wide) ** 2 + (dv / deep) ** 2) - 1) * deep
    shut = 0.6 * p.at(spine.crowding)
    canvas.paint_mixture(edge(room, 0.8) * near_disc, shut, Tissue.EPIDURAL_FAT, Tissue.LIGAMENT)
    flat = np.minimum(1.7 * size, deep * 0.9)
    root = np.sqrt((du / (1.8 * size)) ** 2 + (dv / flat) ** 2) - 1
    canvas.paint(edge(root * flat, 0.8) * near_disc, Tissue.ROOT)


def _paint_sac(body, p, canvas) -> None:
    """Dura, CSF, roots, cord. Wider in front lower down; its side is pushed in where the recess is narrowed."""
    spine, soft = body.spine, canvas.softness
    front, back, half = (p.at(a) for a in (spine.sac_front, spine.sac_back, spine.sac_half))
    fill, recess = p.at(spine.crowding), spine.recess[p.side, p.index]
    middle, deep = (front + back) / 2, np.maximum((back - front) / 2, 0.3)
    height = (p.v - middle) / deep
    forward = -np.clip(height, -1, 1)
    broad = np.maximum(half, 0.3) * (1 - 0.42 * recess * (0.75 + 0.25 * forward))
    broad *= 1 + 0.16 * forward * p.at(body.trapezoid)
    across = p.u / broad
    sac = (np.sqrt(across * across + height * height) - 1) * np.minimum(broad, deep)
    sac = np.where(half < 1.2, 5, sac)
    canvas.paint(edge(sac - 0.5, soft), Tissue.LIGAMENT)

    layer = np.clip((p.s * (1 / ROOT_LAYER_MM)).astype(np.intp), 0, len(body.roots) - 1)
    column, row = (
        np.clip((c + ROOT_REACH) * (ROOT_CELLS / (2 * ROOT_REACH)), 0, ROOT_CELLS - 1).astype(np.intp)
        for c in (across, height)
    )
    strands = body.roots.ravel().take((layer * ROOT_CELLS + column) * ROOT_CELLS + row)
    mix = np.clip(strands * (0.8 + fill) + fill * (0.92 + 0.10 * p.grain), 0, 1)
    inside = edge(sac + 0.2, soft)
    canvas.paint_mixture(inside, mix, Tissue.CSF, Tissue.ROOT, 0.04 * p.clouds)
    radius = p.at(spine.cord)
    if radius.max(initial=0) > 0:
        cord = np.sqrt((p.u / 1.25) ** 2 + (p.v - middle - 0.9) ** 2) - radius
        canvas.paint(edge(cord, soft) * inside * (radius > 0.2), Tissue.CORD, 0.04 * p.grain)


def paint_foramina(body, p, canvas) -> None:
    """Fat and exiting root between the pedicles; narrowing closes the fat in."""
    spine, size = body.spine, body.person.stature
    soft = canvas.softness
    disc = p.at(spine.disc)
    narrow = spine.foramen[p.side, p.index]
    narrow = np.where(disc >= L1, narrow, 0.1)
    below = p.s - p.at(spine.disc_middle)
    scale = np.float32(size)
    inner = p.at(spine.canal_half)
    outer = p.at(spine.pedicle_centre) + p.at(spine.pedicle_half)
    at_s = -(4.2 + 3.6 * narrow) * scale
    # The way out runs outward and forward.
    at_v = 4.4 * scale + np.minimum(p.at(spine.posterior), 0) - 0.22 * np.maximum(p.abs_u - inner, 0)
    ds, dv = below - at_s, p.v - at_v
    # Open to the canal inside and to the fat beside the spine outside: soft ends, and wider outward.
    medial = inner + 4 * spine.recess[p.side, p.index]
    span = edge(np.maximum(medial - p.abs_u, p.abs_u - outer - 5), 5.0)
    flare = 1 + 0.03 * np.clip(p.abs_u - outer, 0, 10)
    present = (disc < S1) * span
    keyhole = 1 - 0.05 * np.clip(ds, -3, 11)
    tall, deep = 10.3 * scale, 6.3 * scale
    keyhole *= flare * (1 + 0.10 * p.slow)
    whole = np.sqrt((ds / (1.08 * tall)) ** 2 + (dv / (1.22 * deep * keyhole)) ** 2) - 1
    closing = np.clip(narrow * 3.5 + 0.1, 0, 1)
    canvas.paint(edge(whole * deep, 1.5) * present * closing, Tissue.LIGAMENT, 0.12 * p.grain)
    tall, deep = tall * (1 - 0.70 * narrow), deep * (1 - 0.84 * narrow)
    open_ = np.sqrt((ds / tall) ** 2 + (dv / (deep * keyhole)) ** 2) - 1
    canvas.paint(edge(open_ * deep, soft) * present, Tissue.EPIDURAL_FAT, 0.06 * p.clouds)
    # The root leaves below the pedicle, in the upper part, and runs forward as it goes out.
    at_root = below + (8.2 - 0.33 * (p.abs_u - inner)) * scale
    flat = np.minimum(2.5 * scale, 0.92 * deep)
    root = np.sqrt((at_root / (2.9 * scale)) ** 2 + ((dv + 0.3 * scale) / flat) ** 2) - 1
    canvas.paint(edge(root * flat, soft) * present, Tissue.ROOT, 0.06 * p.grain)
