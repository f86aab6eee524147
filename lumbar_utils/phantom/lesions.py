"""What happens to single bodies and discs: collapse, nodes, marrow disease, herniation, Modic changes, haemangioma."""

from __future__ import annotations

import numpy as np

from .person import L1, S1
from .tissue import Tissue, edge

_TOP = L1 - 2
"""T11, the first vertebra that can be ill."""


def sunken_endplates(body, p, inner: np.ndarray, below: np.ndarray) -> np.ndarray | float:
    """mm by which biconcave collapse and Schmorl's nodes push the end-plates into the bodies."""
    person, spine = body.person, body.spine
    sunk: np.ndarray | float = 0.0
    if person.fracture[:, 1].any():
        lost = np.zeros(len(body.hollow), dtype=np.float32)
        lost[_TOP : _TOP + 7] = person.fracture[:, 1]
        sunk = lost.take(p.at(spine.vertebra)) * p.at(spine.body_half) * (1 - inner)
    if person.schmorl_mm.any():
        node = np.zeros(len(body.hollow), dtype=np.float32)
        node[_TOP : _TOP + 7] = person.schmorl_mm
        depth = node.take(p.at(spine.disc))
        forward = (p.at(spine.posterior) - p.v) / p.at(spine.depth)
        place = (p.u / 8) ** 2 + ((forward - body.schmorl_depth_share) / 0.17) ** 2
        above = np.where(below < 0, depth, -depth)
        sunk = sunk + np.maximum(above, 0) * np.exp(-(place**2))
    return sunk


def paint_marrow_disease(body, p, marrow: np.ndarray, texture: np.ndarray, canvas) -> None:
    """Patches that replace marrow: by something wet (bright on T2 and STIR, dark on T1) or sclerotic (dark on all)."""
    share = np.zeros(len(body.hollow), dtype=np.float32)
    share[_TOP : _TOP + 8] = body.person.marrow
    amount = share.take(p.at(body.spine.vertebra))
    for sign, tissue in ((1, Tissue.OEDEMA), (-1, Tissue.SCLEROSIS)):
        ill = np.maximum(sign * amount, 0)
        if ill.any():
            patch = np.clip((ill - 0.5) * 3 + p.slow + 0.5 * p.clouds, 0, 1)
            canvas.paint(marrow * patch * (ill > 0) * 0.85, tissue, texture)


def paint_modic(body, p, below: np.ndarray, reach: np.ndarray, marrow: np.ndarray, texture, canvas) -> None:
    """End-plate changes; `reach` is half the disc's height at each point."""
    disc = p.at(body.spine.disc)
    level = np.clip(disc - L1, 0, 4)
    kind = np.where((disc >= L1) & (disc < S1), body.person.modic.astype(np.int16).take(level), 0)
    if kind.any():
        near = edge(np.abs(below) - reach - 7.5 + 4 * p.clouds, 5.0) * marrow
        for number, tissue in ((1, Tissue.OEDEMA), (2, Tissue.FATTY_MARROW), (3, Tissue.SCLEROSIS)):
            canvas.paint(near * (kind == number) * 0.85, tissue, texture)


def paint_haemangioma(body, p, t: np.ndarray, marrow: np.ndarray, canvas) -> None:
    """A ball of fatty marrow with coarse trabeculae; `t` is the distance from the body's middle along the spine."""
    here = p.at(body.spine.vertebra) == L1 + body.person.haemangioma
    if body.person.haemangioma >= 0 and here.any():
        at_u, at_v, at_t, radius = body.haemangioma
        away = np.sqrt((p.u - at_u) ** 2 + (p.v - at_v) ** 2 + (t - at_t) ** 2) - radius
        inside = edge(away + p.clouds, 1.5) * here * marrow
        canvas.paint(inside * (1 - np.float32(0.3) * (p.grain > 0.6)), Tissue.FATTY_MARROW, 0.35)


def paint_herniations(body, p, canvas) -> None:
    """Disc tissue behind the posterior margin, on one side or in the middle, hanging down a little."""
    person, spine = body.person, body.spine
    for level in np.flatnonzero(person.herniation_mm > 0):
        size, at = np.float32(person.herniation_mm[level]), L1 + level
        back = p.v - p.at(spine.posterior)
        down = (p.s - float(spine.disc_middles[at]) - 0.25 * back) / (3 + 0.45 * size)
        across = (p.u - body.herniation_at[level]) / (3 + 0.6 * size)
        ball = np.sqrt(down * down + across * across + (back / size) ** 2) - 1
        near = edge(ball * size + 0.4 * p.clouds, canvas.softness) * (back > -3)
        canvas.paint(edge(ball * size - 0.7, canvas.softness) * (back > -3), Tissue.LIGAMENT)
        canvas.paint_mixture(near, 0.5 * body.nucleus[at] + 0 * p.u, Tissue.ANNULUS, Tissue.NUCLEUS, 0.15 * p.grain)
