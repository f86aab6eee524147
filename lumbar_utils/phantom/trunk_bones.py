"""Bones beside the spine that a lateral slice meets and that tell where it is: the last ribs and the iliac wings."""

from __future__ import annotations

import numpy as np

from .profiles import L1, S1
from .tissue import Tissue, edge

_F = np.float32


def paint_ribs(body, p, paint) -> None:
    """Ribs from T12 upward: outward, downward and backward from the transverse processes, round in a sagittal cut."""
    spine, size, soft = body.spine, body.person.stature, paint.softness
    out = p.au - _F(20 * size)
    raised = p.s - _F(0.35) * out - _F(2 * size)
    index = spine.index(raised)
    up = raised - spine.body_middle.take(index) + _F(0.3) * spine.body_half.take(index)
    # Backward to the rib's angle, then forward.
    back = p.v - _F(9 * size) - _F(0.30) * out + _F(0.006) * out * out
    rib = np.sqrt(_F(0.45) * up * up + back * back) - _F(3.6 * size)
    rib = np.maximum(rib, -out) + _F(0.5) * p.slow
    thoracic = spine.vertebra.take(index) < L1
    paint.lay(edge(rib - _F(0.2), soft) * thoracic, Tissue.CORTEX)
    paint.lay(edge(rib + _F(1.0), soft) * thoracic, Tissue.MARROW, _F(0.1) * p.grain)


def iliac_field(body, f: dict[str, np.ndarray], beside: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Signed distance in mm to the iliac wings: a plate from beside the sacrum outward and forward, up to L4/5."""
    spine, size = body.spine, body.person.stature
    aside, back = np.abs(beside) / size - 50, behind / size - 8 - body.hip_back
    across, along = 0.8 * aside + 0.6 * back, 0.6 * aside - 0.8 * back
    thick = 4 + 5 * np.exp(-((along / 18) ** 2))
    plate = np.abs(across - 0.0035 * along * along * np.sign(along) * 0.3) - thick
    height = (f["z"] - float(spine.curve.at(spine.curve.z, spine.middles[S1]))) / size
    crest = 8 + body.hip_height + 0.55 * along - 0.0035 * along * along
    inside = np.maximum(np.maximum(plate, height - crest), np.maximum(-26 - along, along - 105))
    return (np.maximum(inside, -height - 75) * size + 0.8 * f["low2"]).astype(f["z"].dtype)


def paint_ilium(f: dict[str, np.ndarray], grain: np.ndarray, paint) -> None:
    """The iliac wings, from their field."""
    paint.lay(edge(f["ilium"], paint.softness), Tissue.CORTEX)
    paint.lay(edge(f["ilium"] + _F(1.3), paint.softness), Tissue.MARROW, _F(0.1) * grain + _F(0.08) * f["low2"])
