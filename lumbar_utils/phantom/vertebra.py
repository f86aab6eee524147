"""Vertebral bodies and intervertebral discs, and what wears them out."""

from __future__ import annotations

import numpy as np

from .lesions import paint_haemangioma, paint_herniations, paint_marrow_disease, paint_modic, sunken_endplates
from .profiles import S1, Spine
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
    below = p.s - spine.disc_middle.take(p.index)
    hollow = body.hollow.take(vertebra) * (1 - inner) + sunken_endplates(body, p, inner, below)
    forward = (spine.posterior.take(p.index) - p.v) / spine.depth.take(p.index)
    endplate = np.abs(t) - half + hollow + _F(0.7) * p.slow * (_F(0.3) + worn)
    left = spine.remnants.open.astype(np.float32).take(disc)
    away = np.abs(forward - spine.remnants.at.astype(np.float32).take(disc)) - left * _F(0.5)
    # Where bodies have grown together there is no end-plate, or the trace of one.
    joined = np.clip(away * 5, 0, 1) * (left < 1)
    endplate = endplate - 7 * joined
    bone = np.maximum(radial + _F(0.5) * p.slow, endplate)
    soft = paint.softness

    # Discs first: what is between the end-plates and inside the outline.
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
    below = p.s - spine.disc_middle.take(p.index)
    trace = spine.remnants.line.astype(np.float32).take(disc) * joined * edge(np.abs(below) - _F(0.8), soft)
    paint.lay(trace * marrow, Tissue.CORTEX)

    paint_modic(body, p, below, disc_half + hollow, marrow, texture, paint)
    if person.marrow.any():
        paint_marrow_disease(body, p, marrow, texture, paint)
    back = spine.posterior.take(p.index) - p.v
    wedge = np.maximum(np.abs(t) - _F(2.6) + _F(0.17) * back, p.au - _F(4.5))
    wedge = np.maximum(wedge, back - _F(12))
    paint.lay(edge(wedge, 1.4) * marrow * lumbar * _F(0.75), Tissue.VEIN)
    paint_haemangioma(body, p, t, marrow, paint)
    if person.herniation_mm.any():
        paint_herniations(body, p, paint)
