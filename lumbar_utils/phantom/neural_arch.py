"""The bones behind and beside the canal: pedicles, facets, laminae, spinous and transverse processes, sacrum, ribs.

Each bone is a signed distance in mm, negative inside, at a flat list of points (`anatomy.Points`). They are united
before painting, so that no cortex is left where one grows out of another.
"""

from __future__ import annotations

import numpy as np

from .canal import Section
from .person import L1, S1
from .tissue import Tissue, edge


def paint_neural_arch(body, p, canvas) -> None:
    """All bone but the bodies, with the facet joints, the sacral foramina and the ligaments between the spines."""
    spine, size, soft = body.spine, body.person.stature, canvas.softness
    # A lumbarised S1 has facets of its own.
    sacral = p.at(spine.vertebra) >= S1 + (body.person.transition > 0.4)
    back = p.at(spine.canal_back)
    below = p.s - p.at(spine.disc_middle)
    centre = p.at(spine.pedicle_centre)
    section = Section(body, p)
    pillar, joint, fluid = _pillar(body, p, section, below, centre)
    spinous, length = _spinous(body, p, size, back)
    free = np.minimum(_pedicle_and_transverse(spine, p, size, centre), pillar)
    bone = np.minimum(np.minimum(_lamina(body, p, size, back), spinous), _wing(body, p))
    bone = np.where(sacral, bone, np.minimum(bone, free)) + 0.6 * p.slow
    if body.removed.any():
        wound = _wound(body, p, back)
        bone = np.maximum(bone, -wound)

    # Between the spinous processes: ligament with stripes of fat.
    between = np.maximum(p.abs_u - 4, np.maximum(back - p.v, p.v - back - length - 1))
    stripes = 0.42 + 0.35 * p.clouds + 0.16 * np.sin(0.75 * p.s + 0.4 * p.v + p.clouds)
    canvas.paint_mixture(edge(between, 2.0), np.clip(stripes, 0, 1), Tissue.LIGAMENT, Tissue.FAT, 0.1 * p.grain)
    # The supraspinous ligament runs over their tips.
    cord = np.maximum(np.abs(p.v - back - length - 3) - 1.8 + 0.5 * p.slow, p.abs_u - 6)
    canvas.paint(edge(cord, 1.5) * ~sacral, Tissue.LIGAMENT)
    # Fat lies behind and between the joints, the more the older the muscles.
    pad = edge(bone - body.arch_pad + 2.5 * p.clouds, 3.0) * (p.v > section.roof + 2) * ~sacral
    canvas.paint(pad * np.clip(body.arch_fat + 0.8 * (p.at(body.streaks) - 0.4), 0, 1), Tissue.FAT, 0.1 * p.grain)
    canvas.paint(edge(bone - 0.3, soft) * 0.95, Tissue.CORTEX)
    dense = body.arch_dense[p.side, p.at(spine.disc)] + 0.25 * p.clouds
    dense = np.clip(dense, 0, 0.95) * np.clip((p.v - 5 * size) / (6 * size), 0, 1) * ~sacral
    texture = 0.10 * p.grain + 0.12 * p.clouds + 0.08
    canvas.paint_mixture(edge(bone + body.arch_cortex, soft), dense, Tissue.MARROW, Tissue.CORTEX, texture)

    at_joint = edge(np.maximum(pillar + 0.5, np.abs(below) - (11 * size)), 2.0) * ~sacral
    canvas.paint(at_joint * edge(np.abs(joint) - body.arch_cortex - fluid, soft), Tissue.CORTEX)
    canvas.paint_mixture(
        at_joint * edge(np.abs(joint) - fluid, soft), np.clip(fluid, 0, 1), Tissue.CARTILAGE, Tissue.FLUID
    )
    if body.removed.any():
        tissue = (Tissue.LIGAMENT, Tissue.FAT, Tissue.FLUID)[body.person.wound]
        scarred = edge(wound + p.clouds, 3.0)
        canvas.paint_mixture(scarred, np.clip(0.75 + 0.5 * p.slow, 0, 1), Tissue.MUSCLE, tissue, 0.2 * p.clouds)
    _paint_sacral_foramina(spine, p, size, below, canvas)


def _pedicle_and_transverse(spine, p, size: float, centre: np.ndarray) -> np.ndarray:
    """Pedicles from the upper half of the body backward; transverse processes out from their ends."""
    t, half = p.s - p.at(spine.body_middle), p.at(spine.body_half)
    up, behind = t + 0.30 * half, (p.v - (9 * size) - 0.12 * p.abs_u) * 0.8
    transverse = np.sqrt(up * up + behind * behind) - (3.4 * size)
    transverse = np.maximum(transverse, np.maximum(p.abs_u - centre - (24 * size), centre - p.abs_u))
    return np.minimum(pedicle(spine, p, size), transverse)


def pedicle(spine, p, size: float) -> np.ndarray:
    """Signed distance of the points from the pedicle, mm; it reaches into the body, whose back wall is open there."""
    t, half, width = p.s - p.at(spine.body_middle), p.at(spine.body_half), p.at(spine.pedicle_half)
    rise, off = (t + 0.36 * half) / (0.52 * half), (p.abs_u - p.at(spine.pedicle_centre)) / width
    ends = (np.maximum(np.abs(p.v - (3 * size)) - (8 * size), 0) / (5 * size)) ** 2
    return (np.sqrt(rise * rise + off * off + ends * ends) - 1) * width + 0.5 * p.slow


def _pillar(body, p, section, below, centre) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Articular pillar, thick at the joint and thin between two, the distance from the joint's curved face, and half
    the width of what is in the joint.

    At the joint it is a wedge along the flavum, from the recess outward and backward. A narrowed recess goes with an
    overgrown facet that reaches forward and inward.
    """
    spine, size = body.spine, np.float32(body.person.stature)
    disc, recess = p.at(spine.disc), spine.recess[p.side, p.index]
    turn, swell, fluid = (values[p.side, disc] for values in body.joints)
    wide = np.exp(-(((below - 1) / (9 * size)) ** 2))
    at_u = centre - 1 + wide * (section.broad + (4.4 * size) - centre + 1)
    at_v = p.at(spine.canal_back) - (3.5 * size)
    at_v += wide * (section.front + (12.0 * size) - at_v)
    du, dv = p.abs_u - at_u, p.v - at_v
    along, across = du * np.cos(turn) + dv * np.sin(turn), du * np.sin(turn) - dv * np.cos(turn)
    long = (4.6 * size) + (5.6 * size * swell + 2.0 * recess) * wide
    short = (3.6 * size) + (3.4 * size * swell + 2.2 * recess) * wide
    pillar = (np.sqrt((along / long) ** 2 + (across / short) ** 2) - 1) * short + 0.9 * p.slow + 0.3 * p.clouds
    behind = (section.roof - p.v) / section.tilt + 0.2
    pillar = np.where(wide > 0.05, np.maximum(pillar, behind), pillar)
    return pillar, across + 0.12 * below + 0.045 * along * along - 0.8 * size + 0.3 * p.slow, fluid


def _lamina(body, p, size: float, back: np.ndarray) -> np.ndarray:
    """Two plates that meet behind the canal like a roof, with gaps at the height of the discs."""
    roof = back - 0.50 * p.abs_u
    gap = (p.at(body.spine.interlaminar) - body.lamina_reach.take(p.at(body.spine.disc))) * (9 * size)
    plate = np.maximum(np.abs(p.v - roof - (3.0 * size)) - (2.8 * size), p.abs_u - (15 * size))
    return np.maximum(plate, gap)


def _spinous(body, p, size: float, back: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spinous processes, hanging lower than their bodies, and the length of the nearest one."""
    spine = body.spine
    lowered = p.s - (8 * size) - 0.22 * (p.v - back)
    index = spine.index(lowered)
    owner = spine.vertebra.take(index)
    length = body.spinous_length.take(owner)
    out = np.abs(p.v - back - (2 * size) - length / 2) - length / 2 + 6
    up = np.abs(lowered - spine.body_middle.take(index)) - body.spinous_half.take(owner) + 6
    up -= 0.12 * (p.v - back)
    blade = np.sqrt(np.maximum(out, 0) ** 2 + np.maximum(up, 0) ** 2) - 6 + 0.9 * p.slow
    thickness = (2.6 * size) + 0.05 * (p.v - back)
    return np.maximum(blade, p.abs_u - thickness + 0.4 * p.slow), length


def _wound(body, p, back: np.ndarray) -> np.ndarray:
    """Where a laminectomy has taken lamina, spinous process and the ligaments behind: a trough down to the canal."""
    taken = body.removed.take(body.spine.vertebra.take(body.spine.index(p.s - (5 * body.person.stature))))
    trough = np.maximum(
        p.abs_u - 11 - 0.15 * (p.v - back), np.maximum(back - p.v, p.v - back - (26 * body.person.stature))
    )
    return np.where(taken, trough + 3 * p.slow, 20)


def _wing(body, p) -> np.ndarray:
    """The sacrum's lateral masses, from below the top of S1."""
    half, depth = p.at(body.wing), p.at(body.wing_depth)
    wing = np.maximum(p.abs_u - half, np.abs(p.v + depth - 8) - depth)
    top = body.sacrum_top - p.s + 2 + 0.22 * np.maximum(p.abs_u - 20, 0)
    wing = np.maximum(wing, top) + 0.8 * p.slow
    # Not inside the sacral canal.
    return np.maximum(wing, np.minimum(p.at(body.spine.canal_half) - p.abs_u, p.v + 1))


def _paint_sacral_foramina(spine, p, size: float, below: np.ndarray, canvas) -> None:
    """Fat with a root. They run forward and outward, so a sagittal plane cuts them round."""
    present = p.at(spine.disc) >= S1
    if not present.any():
        return
    path = p.abs_u - p.at(spine.canal_half) - 1 + 0.8 * (p.v - 2)
    ring = np.sqrt((below + 0.5 * p.v) ** 2 + path * path * 0.6) + p.slow
    ends = edge(np.maximum(p.v - 4, -16 - p.v), 3.0) * present
    canvas.paint(edge(ring - (4.6 * size), 1.5) * ends, Tissue.FAT)
    canvas.paint(edge(ring - (2.2 * size), 1.2) * ends, Tissue.ROOT)


def paint_ribs(body, p, canvas) -> None:
    """Ribs from T12 upward: outward, downward and backward from the transverse processes, round in a sagittal cut."""
    spine, size, soft = body.spine, body.person.stature, canvas.softness
    out = p.abs_u - (20 * size)
    raised = p.s - 0.35 * out - (2 * size)
    index = spine.index(raised)
    up = raised - spine.body_middle.take(index) + 0.3 * spine.body_half.take(index)
    # Backward to the rib's angle, then forward.
    back = p.v - (9 * size) - 0.30 * out + 0.006 * out * out
    rib = np.sqrt(0.45 * up * up + back * back) - (3.6 * size)
    rib = np.maximum(rib, -out) + 0.5 * p.slow
    thoracic = spine.vertebra.take(index) < L1
    canvas.paint(edge(rib - 0.2, soft) * thoracic, Tissue.CORTEX)
    canvas.paint(edge(rib + 1.0, soft) * thoracic, Tissue.MARROW, 0.1 * p.grain)
