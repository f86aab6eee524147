"""The bones behind and beside the canal: pedicles, facets, laminae, spinous and transverse processes, sacral wings.

Each bone is a signed distance in mm, negative inside, at a flat list of points (`anatomy.Part`). They are united
before painting, so that no cortex is left where one grows out of another.
"""

from __future__ import annotations

import numpy as np

from .profiles import S1
from .tissue import Tissue, edge

_F = np.float32


def paint_arches(body, p, paint) -> None:
    """All bone but the bodies, with the facet joints, the sacral foramina and the ligaments between the spines."""
    spine, size, soft = body.spine, body.person.stature, paint.softness
    # A lumbarised S1 has facets of its own.
    sacral = spine.vertebra.take(p.index) >= S1 + (body.person.transition > 0.4)
    back = spine.canal_back.take(p.index)
    below = p.s - spine.disc_middle.take(p.index)
    centre = spine.pedicle_centre.take(p.index)
    pillar, joint = _pillar(spine, p, size, back, below, centre)
    spinous, length = _spinous(body, p, size, back)
    free = np.minimum(_pedicle_and_transverse(spine, p, size, centre), pillar)
    bone = np.minimum(np.minimum(_lamina(spine, p, size, back), spinous), _wing(body, p))
    bone = np.where(sacral, bone, np.minimum(bone, free)) + _F(0.6) * p.slow
    if body.removed.any():
        wound = _wound(body, p, back)
        bone = np.maximum(bone, -wound)

    # Between the spinous processes: ligament with stripes of fat.
    between = np.maximum(p.au - 4, np.maximum(back - p.v, p.v - back - length - 1))
    stripes = _F(0.42) + _F(0.35) * p.clouds + _F(0.16) * np.sin(_F(0.75) * p.s + _F(0.4) * p.v + p.clouds)
    paint.blend(edge(between, 2.0), np.clip(stripes, 0, 1), Tissue.LIGAMENT, Tissue.FAT, _F(0.1) * p.grain)
    # The supraspinous ligament runs over their tips.
    cord = np.maximum(np.abs(p.v - back - length - 3) - _F(1.8) + _F(0.5) * p.slow, p.au - 6)
    paint.lay(edge(cord, 1.5) * ~sacral, Tissue.LIGAMENT)
    paint.lay(edge(bone - _F(0.15), soft) * _F(0.8), Tissue.CORTEX)
    paint.lay(edge(bone + _F(0.6), soft), Tissue.MARROW, _F(0.10) * p.grain + _F(0.12) * p.clouds + _F(0.08))

    at_joint = edge(np.maximum(pillar + _F(0.5), np.abs(below) - _F(8 * size)), 2.0) * ~sacral
    paint.lay(at_joint * edge(np.abs(joint) - _F(1.5), soft), Tissue.CORTEX)
    paint.lay(at_joint * edge(np.abs(joint) - _F(0.45), soft), Tissue.CARTILAGE)
    if body.removed.any():
        tissue = (Tissue.LIGAMENT, Tissue.FAT, Tissue.FLUID)[body.person.wound]
        scarred = edge(wound + p.clouds, 3.0)
        paint.blend(scarred, np.clip(_F(0.75) + _F(0.5) * p.slow, 0, 1), Tissue.MUSCLE, tissue, _F(0.2) * p.clouds)
    _paint_sacral_foramina(spine, p, size, below, paint)


def _pedicle_and_transverse(spine, p, size: float, centre: np.ndarray) -> np.ndarray:
    """Pedicles from the upper half of the body backward; transverse processes out from their ends."""
    t, half = p.s - spine.body_middle.take(p.index), spine.body_half.take(p.index)
    width = spine.pedicle_half.take(p.index)
    rise, off = (t + _F(0.36) * half) / (_F(0.52) * half), (p.au - centre) / width
    ends = ((p.v - _F(2 * size)) / _F(12.5 * size)) ** 2
    pedicle = (np.sqrt(rise * rise + off * off + ends * ends) - 1) * width + _F(0.5) * p.slow
    up, behind = t + _F(0.30) * half, (p.v - _F(9 * size) - _F(0.12) * p.au) * _F(0.8)
    transverse = np.sqrt(up * up + behind * behind) - _F(3.4 * size)
    transverse = np.maximum(transverse, np.maximum(p.au - centre - _F(24 * size), centre - p.au))
    return np.minimum(pedicle, transverse)


def _pillar(spine, p, size: float, back, below, centre) -> tuple[np.ndarray, np.ndarray]:
    """Articular pillar, thick at the joint and thin between two, and the distance from the joint's curved face.

    A narrowed recess goes with an overgrown facet that reaches forward and inward.
    """
    recess = spine.recess[p.side, p.index]
    wide = np.exp(-(((below - 1) / _F(9 * size)) ** 2))
    reach = _F(4.6 * size) + (_F(3.4 * size) + 2 * recess) * wide
    du = p.au - centre - _F(1.5 * size) + _F(1.2) * recess * wide
    dv = p.v - back + _F(3.5 * size) - wide
    # Longer along the joint than across it.
    pillar = np.sqrt(du * du + dv * dv - _F(0.35) * du * dv) - reach + _F(0.8) * p.slow
    along, across = (du + dv) * _F(0.7), (du - dv) * _F(0.7)
    return pillar, across - _F(0.12) * below - _F(0.05) * along * along + _F(0.5) * p.slow


def _lamina(spine, p, size: float, back: np.ndarray) -> np.ndarray:
    """Two plates that meet behind the canal like a roof, with gaps at the height of the discs."""
    roof = back - _F(0.50) * p.au
    gap = (spine.interlaminar.take(p.index) - _F(0.42)) * _F(9 * size)
    plate = np.maximum(np.abs(p.v - roof - _F(3.0 * size)) - _F(2.8 * size), p.au - _F(15 * size))
    return np.maximum(plate, gap)


def _spinous(body, p, size: float, back: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spinous processes, hanging lower than their bodies, and the length of the nearest one."""
    spine = body.spine
    lowered = p.s - _F(8 * size) - _F(0.22) * (p.v - back)
    index = spine.index(lowered)
    owner = spine.vertebra.take(index)
    length = body.spinous_length.take(owner)
    out = np.abs(p.v - back - _F(2 * size) - length / 2) - length / 2 + 6
    up = np.abs(lowered - spine.body_middle.take(index)) - body.spinous_half.take(owner) + 6
    up -= _F(0.12) * (p.v - back)
    blade = np.sqrt(np.maximum(out, 0) ** 2 + np.maximum(up, 0) ** 2) - 6 + _F(0.9) * p.slow
    thickness = _F(2.6 * size) + _F(0.05) * (p.v - back)
    return np.maximum(blade, p.au - thickness + _F(0.4) * p.slow), length


def _wound(body, p, back: np.ndarray) -> np.ndarray:
    """Where a laminectomy has taken lamina, spinous process and the ligaments behind: a trough down to the canal."""
    taken = body.removed.take(body.spine.vertebra.take(body.spine.index(p.s - _F(5 * body.person.stature))))
    trough = np.maximum(
        p.au - 11 - _F(0.15) * (p.v - back), np.maximum(back - p.v, p.v - back - _F(26 * body.person.stature))
    )
    return np.where(taken, trough + 3 * p.slow, _F(20))


def _wing(body, p) -> np.ndarray:
    """The sacrum's lateral masses, from below the top of S1."""
    half, depth = body.wing.take(p.index), body.wing_depth.take(p.index)
    wing = np.maximum(p.au - half, np.abs(p.v + depth - 8) - depth)
    top = _F(body.sacrum_top) - p.s + 2 + _F(0.22) * np.maximum(p.au - 20, 0)
    wing = np.maximum(wing, top) + _F(0.8) * p.slow
    # Not inside the sacral canal.
    return np.maximum(wing, np.minimum(body.spine.canal_half.take(p.index) - p.au, p.v + 1))


def _paint_sacral_foramina(spine, p, size: float, below: np.ndarray, paint) -> None:
    """Fat with a root. They run forward and outward, so a sagittal plane cuts them round."""
    present = spine.disc.take(p.index) >= S1
    if not present.any():
        return
    path = p.au - spine.canal_half.take(p.index) - 1 + _F(0.8) * (p.v - 2)
    ring = np.sqrt((below + _F(0.5) * p.v) ** 2 + path * path * _F(0.6)) + p.slow
    ends = edge(np.maximum(p.v - 4, -16 - p.v), 3.0) * present
    paint.lay(edge(ring - _F(4.6 * size), 1.5) * ends, Tissue.FAT)
    paint.lay(edge(ring - _F(2.2 * size), 1.2) * ends, Tissue.ROOT)
