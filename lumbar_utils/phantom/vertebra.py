"""Vertebral bodies and intervertebral discs, and what wears them out."""

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

    paint.lay(edge(bone - _F(0.15), soft) * np.clip(_F(0.78) + _F(0.2) * p.slow, 0, 1), Tissue.CORTEX)
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
