"""Vertebral bodies and intervertebral discs, and what wears them out."""

from __future__ import annotations

import numpy as np

from .lesions import paint_haemangioma, paint_herniations, paint_marrow_disease, paint_modic, sunken_endplates
from .neural_arch import pedicle
from .person import S1
from .profiles import Spine
from .tissue import Tissue, edge


def body_radius(spine: Spine, p) -> tuple[np.ndarray, np.ndarray]:
    """Radial distance of points from the outline of bodies and discs: signed mm, and relative (0 centre, 1 edge)."""
    depth, half = p.at(spine.depth), p.at(spine.half_width)
    posterior = p.at(spine.posterior)
    across = p.u / half
    across *= across
    # The back is flat to slightly hollow: an ellipse deeper than the body, cut off.
    along = (p.v - posterior + 0.40 * depth) / (0.60 * depth)
    along *= along
    along *= 0.78 + 0.22 * along
    relative = np.sqrt(across * (0.75 + 0.25 * across) + along)
    radial = (relative - 1) * (0.85 * half)
    flat = p.v - posterior - 1.0 * across + 0.3
    # A rounded corner where the two meet.
    corner = np.maximum(4 - np.abs(radial - flat), 0)
    return np.maximum(radial, flat) + corner * corner * (1 / 16), relative


def paint_bodies(body, p, canvas) -> None:
    """Vertebral bodies with end-plates and veins, discs with nucleus and annulus, Modic changes, haemangioma."""
    spine, person = body.spine, body.person
    radial, relative = body_radius(spine, p)
    inner = np.minimum(relative, 1)
    inner *= inner
    t = p.s - p.at(spine.body_middle)
    half = p.at(spine.body_half)
    vertebra = p.at(spine.vertebra)
    disc = p.at(spine.disc)
    lumbar = (vertebra < S1).astype(np.float32)
    worn = p.at(spine.degeneration)
    below = p.s - p.at(spine.disc_middle)
    forward = (p.at(spine.posterior) - p.v) / p.at(spine.depth)
    hollow = body.hollow.take(vertebra) * (1 - inner) + sunken_endplates(body, p, inner, below)
    if person.dome_mm:
        hollow = hollow + person.dome_mm * ((vertebra == S1) & (t < 0)) * (2 * forward - 1) ** 2
    endplate = np.abs(t) - half + hollow + 0.7 * p.slow * (0.3 + worn)
    left = spine.disc_extent.take(disc)
    away = np.abs(forward - spine.disc_position.take(disc)) - left * 0.5
    # Where bodies have grown together there is no end-plate, or the trace of one.
    joined = np.clip(away * 5, 0, 1) * (left < 1)
    endplate = endplate - 7 * joined
    bone = np.maximum(radial + 0.5 * p.slow, endplate)
    soft = canvas.softness

    # Discs first: what is between the end-plates and inside the outline.
    disc_half = p.at(spine.disc_half)
    canvas.paint(edge(radial + 0.4, soft), Tissue.ANNULUS, 0.15 * p.grain)
    height = below / (disc_half + hollow)
    shift = (p.v - p.at(spine.posterior) + 0.47 * p.at(spine.depth)) / p.at(spine.depth)
    spread = (p.u / p.at(spine.half_width)) ** 2 + (shift * 2.0) ** 2
    nucleus = spread / 0.58 + height * height * (1.0 + 0.25 * height * height)
    core = np.clip((1.38 - nucleus) * 1.25, 0, 1)
    cleft = np.exp(-((below / 1.1) ** 2)) * 0.28
    bright = body.nucleus.take(disc) * (1 - cleft + 0.14 * p.clouds)
    canvas.paint_mixture(
        core * edge(radial + 2, 2.0), np.clip(bright, 0, 1), Tissue.ANNULUS, Tissue.NUCLEUS, 0.10 * p.grain
    )

    wall = 1 - edge(pedicle(spine, p, np.float32(person.stature)) + 1, soft) * (forward < 0.15) * lumbar
    canvas.paint(edge(bone - 0.15, soft) * np.clip(0.78 + 0.2 * p.slow, 0, 1) * wall, Tissue.CORTEX)
    texture = body.marrow.take(vertebra) + 0.055 * p.grain + 0.07 * p.clouds
    fatty = body.fatty + 0.10 * p.clouds + 0.20 * np.exp(-((t / 7) ** 2)) * (inner < 0.8)
    marrow = edge(bone + 0.75, soft)
    canvas.paint_mixture(marrow, np.clip(fatty, 0, 1), Tissue.MARROW, Tissue.FATTY_MARROW, texture)
    trace = spine.disc_scar.take(disc) * joined * edge(np.abs(below) - 0.8, soft)
    canvas.paint(trace * marrow, Tissue.CORTEX)

    paint_modic(body, p, below, disc_half + hollow, marrow, texture, canvas)
    if person.marrow.any():
        paint_marrow_disease(body, p, marrow, texture, canvas)
    back = p.at(spine.posterior) - p.v
    wedge = np.maximum(np.abs(t) - 2.6 + 0.17 * back, p.abs_u - 4.5)
    wedge = np.maximum(wedge, back - 12)
    canvas.paint(edge(wedge, 1.4) * marrow * lumbar * 0.75, Tissue.VEIN)
    paint_haemangioma(body, p, t, marrow, canvas)
    if person.herniation_mm.any():
        paint_herniations(body, p, canvas)
