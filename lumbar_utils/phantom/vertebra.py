"""Bones and discs: vertebral bodies, arches, facets, sacrum, intervertebral discs and what wears them out."""

from __future__ import annotations

import numpy as np

from .profiles import L1, S1, Spine
from .tissue import Tissue, edge

_F = np.float32


def body_radius(spine: Spine, p) -> tuple[np.ndarray, np.ndarray]:
    """Radial distance of points from the outline of bodies and discs: signed mm, and relative (0 centre, 1 edge)."""
    depth, half = spine.depth.take(p.index), spine.half_width.take(p.index)
    posterior = spine.posterior.take(p.index)
    across = p.u / half
    across *= across
    # The back is flat to slightly hollow: an ellipse deeper than the body, cut off.
    along = (p.v - posterior + _F(0.40) * depth) / (_F(0.60) * depth)
    along *= along
    along *= _F(0.78) + _F(0.22) * along
    relative = np.sqrt(across * (_F(0.75) + _F(0.25) * across) + along)
    radial = (relative - 1) * (_F(0.85) * half)
    flat = p.v - posterior - _F(1.0) * across + _F(0.3)
    # A rounded corner where the two meet.
    corner = np.maximum(4 - np.abs(radial - flat), 0)
    return np.maximum(radial, flat) + corner * corner * _F(1 / 16), relative


def paint_arches(body, p, paint) -> None:
    """Pedicles, articular pillars with their joints, laminae, spinous processes and the sacrum's wings."""
    spine, size = body.spine, body.person.stature
    t = p.s - spine.body_middle.take(p.index)
    half = spine.body_half.take(p.index)
    below = p.s - spine.disc_middle.take(p.index)
    vertebra = spine.vertebra.take(p.index)
    sacral = vertebra >= S1
    centre, width = spine.pedicle_centre.take(p.index), spine.pedicle_half.take(p.index)
    back = spine.canal_back.take(p.index)
    recess = spine.recess[p.side, p.index]

    rise = (t + _F(0.36) * half) / (_F(0.52) * half)
    off = (p.au - centre) / width
    pedicle = (np.sqrt(rise * rise + off * off) - 1) * width
    pedicle = np.maximum(pedicle, np.abs(p.v - _F(2 * size)) - _F(11 * size))

    wide = np.exp(-((below - 1) / _F(9 * size)) ** 2)
    reach = _F(4.6 * size) + (_F(3.4 * size) + 2 * recess) * wide
    pillar_v = back - _F(3.5 * size) + wide
    pillar_u = centre + _F(1.5 * size) - _F(1.2) * recess * wide
    du, dv = p.au - pillar_u, p.v - pillar_v
    # Longer along the joint than across it.
    pillar = np.sqrt(du * du + dv * dv - _F(0.35) * du * dv) - reach + _F(0.8) * p.slow

    roof = back - _F(0.50) * p.au
    gap = (spine.interlaminar.take(p.index) - _F(0.42)) * _F(9 * size)
    lamina = np.maximum(np.abs(p.v - roof - _F(3.0 * size)) - _F(2.8 * size), p.au - _F(15 * size))
    lamina = np.maximum(lamina, gap)

    dropped = spine.index(p.s - _F(8 * size) - _F(0.22) * (p.v - back))
    owner = spine.vertebra.take(dropped)
    drop = p.s - _F(8 * size) - _F(0.22) * (p.v - back) - spine.body_middle.take(dropped)
    length, tall = body.spinous_length.take(owner), body.spinous_half.take(owner)
    bulb = _F(2.6 * size) + _F(0.05) * (p.v - back)
    box_v = np.abs(p.v - back - _F(2 * size) - length / 2) - length / 2 + 6
    box_s = np.abs(drop) - tall + 6 - _F(0.12) * (p.v - back)
    spinous = np.sqrt(np.maximum(box_v, 0) ** 2 + np.maximum(box_s, 0) ** 2) - 6
    spinous = np.maximum(spinous + _F(0.9) * p.slow, p.au - bulb + _F(0.4) * p.slow)

    transverse = np.sqrt((t + _F(0.30) * half) ** 2 + ((p.v - _F(9 * size) - _F(0.12) * p.au) * _F(0.8)) ** 2) - _F(3.4 * size)
    transverse = np.maximum(transverse, p.au - centre - _F(24 * size))
    transverse = np.maximum(transverse, centre - p.au)

    wing_half, sacrum_top = body.wing.take(p.index), _F(body.sacrum_top)
    wing_depth = body.wing_depth.take(p.index)
    wing = np.maximum(p.au - wing_half, np.abs(p.v + wing_depth - 8) - wing_depth)
    wing = np.maximum(wing, sacrum_top - p.s + _F(2) + _F(0.22) * np.maximum(p.au - 20, 0)) + _F(0.8) * p.slow
    # Inside the sacral canal there is no wing.
    wing = np.maximum(wing, np.minimum(spine.canal_half.take(p.index) - p.au, p.v + 1))

    bone = np.minimum(np.minimum(lamina, spinous), wing)
    free = np.minimum(np.minimum(pedicle, transverse), pillar)
    bone = np.where(sacral, bone, np.minimum(bone, free))
    bone += _F(0.6) * p.slow
    soft = paint.softness
    # Between the spinous processes: ligament with stripes of fat.
    between = np.maximum(p.au - 4, np.maximum(back - p.v, p.v - back - length - 1))
    stripes = np.clip(_F(0.42) + _F(0.35) * p.clouds + _F(0.16) * np.sin(_F(0.75) * p.s + _F(0.4) * p.v + p.clouds), 0, 1)
    paint.blend(edge(between, 2.0), stripes, Tissue.LIGAMENT, Tissue.FAT, _F(0.1) * p.grain)
    paint.lay(edge(bone - _F(0.2), soft) * _F(0.9), Tissue.CORTEX)
    paint.lay(edge(bone + _F(0.6), soft), Tissue.MARROW, _F(0.10) * p.grain + _F(0.12) * p.clouds + _F(0.08))

    along_joint = (du + dv) * _F(0.7)
    joint = (du - dv) * _F(0.7) - _F(0.12) * below - _F(0.05) * along_joint * along_joint + _F(0.5) * p.slow
    at_joint = edge(np.maximum(pillar + _F(0.5), np.abs(below) - _F(8 * size)), 2.0) * ~sacral
    paint.lay(at_joint * edge(np.abs(joint) - _F(1.5), soft), Tissue.CORTEX)
    paint.lay(at_joint * edge(np.abs(joint) - _F(0.45), soft), Tissue.CARTILAGE)

    hole = spine.disc.take(p.index) >= S1
    if hole.any():
        # Sacral foramina run forward and outward, so a sagittal plane cuts them round.
        path = p.au - spine.canal_half.take(p.index) - 1 + _F(0.8) * (p.v - 2)
        ring = np.sqrt((below + _F(0.5) * p.v) ** 2 + path * path * _F(0.6)) + p.slow
        ends = edge(np.maximum(p.v - 4, -16 - p.v), 3.0) * hole
        paint.lay(edge(ring - _F(4.6 * size), 1.5) * ends, Tissue.FAT)
        paint.lay(edge(ring - _F(2.2 * size), 1.2) * ends, Tissue.ROOT)


def paint_bodies(body, p, paint) -> None:
    """Vertebral bodies with end-plates and veins, discs with nucleus and annulus, Modic changes, haemangioma."""
    spine, person = body.spine, body.person
    radial, relative = body_radius(spine, p)
    inner = np.minimum(relative, 1)
    inner *= inner
    t = p.s - spine.body_middle.take(p.index)
    half = spine.body_half.take(p.index)
    vertebra = spine.vertebra.take(p.index)
    disc = spine.disc.take(p.index)
    lumbar = (vertebra < S1).astype(np.float32)
    worn = spine.degeneration.take(p.index)
    hollow = body.hollow.take(vertebra) * (1 - inner)
    endplate = np.abs(t) - half + hollow + _F(0.7) * p.slow * (_F(0.3) + worn)
    bone = np.maximum(radial + _F(0.5) * p.slow, endplate)
    soft = paint.softness

    # Discs first: what is between the end-plates and inside the outline.
    below = p.s - spine.disc_middle.take(p.index)
    disc_half = spine.disc_half.take(p.index)
    paint.lay(edge(radial + _F(0.4), soft), Tissue.ANNULUS, _F(0.15) * p.grain)
    height = below / (disc_half + hollow)
    shift = (p.v - spine.posterior.take(p.index) + _F(0.47) * spine.depth.take(p.index)) / spine.depth.take(p.index)
    spread = (p.u / spine.half_width.take(p.index)) ** 2 + (shift * _F(2.0)) ** 2
    nucleus = spread / _F(0.58) + height * height * (_F(1.0) + _F(0.25) * height * height)
    core = np.clip((_F(1.38) - nucleus) * _F(1.25), 0, 1)
    cleft = np.exp(-((below / _F(1.1)) ** 2)) * _F(0.28)
    bright = body.nucleus.take(disc) * (1 - cleft + _F(0.14) * p.clouds)
    paint.blend(core * edge(radial + 2, 2.0), np.clip(bright, 0, 1), Tissue.ANNULUS, Tissue.NUCLEUS, _F(0.10) * p.grain)

    paint.lay(edge(bone - _F(0.15), soft) * np.clip(_F(0.85) + _F(0.15) * p.slow, 0, 1), Tissue.CORTEX)
    texture = body.marrow.take(vertebra) + _F(0.055) * p.grain + _F(0.07) * p.clouds
    fatty = body.fatty + _F(0.10) * p.clouds + _F(0.20) * np.exp(-((t / _F(7)) ** 2)) * (inner < _F(0.8))
    marrow = edge(bone + _F(0.75), soft)
    paint.blend(marrow, np.clip(fatty, 0, 1), Tissue.MARROW, Tissue.FATTY_MARROW, texture)

    level = np.clip(disc - L1, 0, 4)
    kind = np.where((disc >= L1) & (disc < S1), person.modic.astype(np.int16).take(level), 0)
    if kind.any():
        near = edge(np.abs(below) - disc_half - hollow - _F(7.5) + _F(4) * p.clouds, 5.0) * marrow
        for number, tissue in ((1, Tissue.OEDEMA), (2, Tissue.FATTY_MARROW), (3, Tissue.SCLEROSIS)):
            paint.lay(near * (kind == number) * _F(0.85), tissue, texture)

    back = spine.posterior.take(p.index) - p.v
    wedge = np.maximum(np.abs(t) - _F(2.6) + _F(0.17) * back, p.au - _F(4.5))
    wedge = np.maximum(wedge, back - _F(12))
    paint.lay(edge(wedge, 1.4) * marrow * lumbar * _F(0.75), Tissue.VEIN)
    if person.haemangioma >= 0 and (vertebra == L1 + person.haemangioma).any():
        at_u, at_v, at_t, radius = body.haemangioma
        away = np.sqrt((p.u - _F(at_u)) ** 2 + (p.v - _F(at_v)) ** 2 + (t - _F(at_t)) ** 2) - _F(radius)
        inside = edge(away + p.clouds, 1.5) * (vertebra == L1 + person.haemangioma) * marrow
        paint.lay(inside * (1 - _F(0.3) * (p.grain > 0.6)), Tissue.FATTY_MARROW, _F(0.35))
