"""What happens to single bodies and discs: collapse, nodes, marrow disease, herniation, Modic changes, haemangioma."""

from __future__ import annotations

import numpy as np

from .profiles import L1, S1
from .tissue import Tissue, edge

_F = np.float32
_TOP = L1 - 2
"""T11, the first vertebra that can be ill."""


def sunken_endplates(body, p, inner: np.ndarray, below: np.ndarray) -> np.ndarray | float:
    """mm by which biconcave collapse and Schmorl's nodes push the end-plates into the bodies."""
    person, spine = body.person, body.spine
    sunk: np.ndarray | float = 0.0
    if person.fracture[:, 1].any():
        lost = np.zeros(len(body.hollow), dtype=np.float32)
        lost[_TOP : _TOP + 7] = person.fracture[:, 1]
        sunk = lost.take(spine.vertebra.take(p.index)) * spine.body_half.take(p.index) * (1 - inner)
    if person.schmorl_mm.any():
        node = np.zeros(len(body.hollow), dtype=np.float32)
        node[_TOP : _TOP + 7] = person.schmorl_mm
        depth = node.take(spine.disc.take(p.index))
        forward = (spine.posterior.take(p.index) - p.v) / spine.depth.take(p.index)
        place = (p.u / _F(8)) ** 2 + ((forward - _F(body.node_at)) / _F(0.17)) ** 2
        above = np.where(below < 0, depth, -depth)
        sunk = sunk + np.maximum(above, 0) * np.exp(-(place**2))
    return sunk


def paint_marrow_disease(body, p, marrow: np.ndarray, texture: np.ndarray, paint) -> None:
    """Patches that replace marrow: by something wet (bright on T2 and STIR, dark on T1) or sclerotic (dark on all)."""
    share = np.zeros(len(body.hollow), dtype=np.float32)
    share[_TOP : _TOP + 8] = body.person.marrow
    amount = share.take(body.spine.vertebra.take(p.index))
    for sign, tissue in ((1, Tissue.OEDEMA), (-1, Tissue.SCLEROSIS)):
        ill = np.maximum(sign * amount, 0)
        if ill.any():
            patch = np.clip((ill - _F(0.5)) * 3 + p.slow + _F(0.5) * p.clouds, 0, 1)
            paint.lay(marrow * patch * (ill > 0) * _F(0.85), tissue, texture)


def paint_modic(body, p, below: np.ndarray, reach: np.ndarray, marrow: np.ndarray, texture, paint) -> None:
    """End-plate changes; `reach` is half the disc's height at each point."""
    disc = body.spine.disc.take(p.index)
    level = np.clip(disc - L1, 0, 4)
    kind = np.where((disc >= L1) & (disc < S1), body.person.modic.astype(np.int16).take(level), 0)
    if kind.any():
        near = edge(np.abs(below) - reach - _F(7.5) + _F(4) * p.clouds, 5.0) * marrow
        for number, tissue in ((1, Tissue.OEDEMA), (2, Tissue.FATTY_MARROW), (3, Tissue.SCLEROSIS)):
            paint.lay(near * (kind == number) * _F(0.85), tissue, texture)


def paint_haemangioma(body, p, t: np.ndarray, marrow: np.ndarray, paint) -> None:
    """A ball of fatty marrow with coarse trabeculae; `t` is the distance from the body's middle along the spine."""
    here = body.spine.vertebra.take(p.index) == L1 + body.person.haemangioma
    if body.person.haemangioma >= 0 and here.any():
        at_u, at_v, at_t, radius = body.haemangioma
        away = np.sqrt((p.u - _F(at_u)) ** 2 + (p.v - _F(at_v)) ** 2 + (t - _F(at_t)) ** 2) - _F(radius)
        inside = edge(away + p.clouds, 1.5) * here * marrow
        paint.lay(inside * (1 - _F(0.3) * (p.grain > 0.6)), Tissue.FATTY_MARROW, _F(0.35))


def paint_herniations(body, p, paint) -> None:
    """Disc tissue behind the posterior margin, on one side or in the middle, hanging down a little."""
    person, spine = body.person, body.spine
    for level in np.flatnonzero(person.herniation_mm > 0):
        size, at = _F(person.herniation_mm[level]), L1 + level
        back = p.v - spine.posterior.take(p.index)
        down = (p.s - _F(spine.disc_middles[at]) - _F(0.25) * back) / (_F(3) + _F(0.45) * size)
        across = (p.u - body.herniation_at[level]) / (_F(3) + _F(0.6) * size)
        ball = np.sqrt(down * down + across * across + (back / size) ** 2) - 1
        near = edge(ball * size + _F(0.4) * p.clouds, paint.softness) * (back > -3)
        paint.lay(edge(ball * size - _F(0.7), paint.softness) * (back > -3), Tissue.LIGAMENT)
        paint.blend(near, _F(0.5) * body.nucleus[at] + 0 * p.u, Tissue.ANNULUS, Tissue.NUCLEUS, _F(0.15) * p.grain)
