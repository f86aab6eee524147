"""What lies around the spine: skin, fat, muscles, vessels, bowel, kidneys, bladder, iliac wings.

All of it is smooth on the scale of several millimetres, so its signed distances are worked out on a coarse lattice
of points and spread from there (`smooth_fields`); only masks and texture are made at every point
(`paint_surroundings`). Sizes are typical ones from cross-sectional anatomy, in mm at stature 1.
"""

from __future__ import annotations

import numpy as np

from .curve import STEP
from .person import L1, L5, S1
from .texture import clouds
from .tissue import Tissue, edge

_KNOTS = (3, L1, L1 + 2, L5, S1, S1 + 1, S1 + 3, S1 + 5)
"""Vertebrae at which the body's outline is given: T10, L1, L3, L5, S1, S2, S4, coccyx."""
_BACK_FAT = np.array([0.3, 0.5, 0.75, 1.0, 1.1, 1.0, 0.8, 1.0])
_FRONT_FAT = np.array([0.5, 0.7, 1.0, 1.3, 1.5, 1.5, 1.2, 1.0])
_SPINE_TO_FASCIA = np.array([43, 48, 50, 46, 34, 27, 20, 16.0])
_BELLY = np.array([104, 114, 118, 116, 112, 108, 100, 95.0])


def smooth_fields(body, xyz: np.ndarray) -> dict[str, np.ndarray]:
    """Smooth fields at points (..., 3) of the body's own frame, each (...): the straightened coordinates `s`, `u`, `v`,
    the points, slow noise (`low`, `low2`, `gut`, `content`: grains of about 80, 30, 20, 30 mm) and the signed distance
    in mm, negative inside, of each structure that is named here."""
    x, y, z = xyz[..., 0], xyz[..., 1], xyz[..., 2]
    curve = body.spine.curve
    s, u, v = curve.project(xyz)
    along = np.interp(-z, -curve.z, np.arange(len(curve.z)) * STEP).astype(xyz.dtype)
    low, low2 = clouds(x, y, z, 34.0, body.shift), clouds(x, y, z, 11.0, body.shift)
    fields = {"s": s, "u": u, "v": v, "x": x, "y": y, "z": z, "low": low, "low2": low2}
    fields["gut"] = clouds(x + 6 * low, y + 6 * low, z + 6 * low2, 8.5, body.shift[::-1])
    fields["content"] = clouds(x + 5 * low2, y, 0.6 * z + 8 * low, 13.0, body.shift[[1, 0, 2]])
    # Where a point lies behind and beside the spine at its own height, and that height as a place on the spine.
    behind = y - curve.at(curve.y, along)
    beside = x - 0.4 * curve.at(curve.sideways, along)
    reach = _outline(body, fields, behind, beside, along)
    _muscles(body, fields, behind, beside, along, reach)
    _vessels(body, fields)
    _organs(body, fields, behind, beside)
    fields["ilium"] = _iliac_field(body, fields, beside, behind)
    return fields


def _outline(body, f, behind, beside, along) -> np.ndarray:
    """Skin, fascia under the fat, peritoneum. Returns the distance from the spine back to the fascia."""
    spine, person = body.spine, body.person
    curve, size = spine.curve, person.stature
    knots = spine.middles[list(_KNOTS)]
    back_fat = np.interp(along, knots, person.fat_mm * _BACK_FAT + 2)
    front_fat = np.interp(along, knots, (0.5 * person.fat_mm + 5) * _FRONT_FAT)
    spine_y = f["y"] - behind
    # Neither the belly nor the skin of the back follow the spine's bends.
    belly = np.interp(along, knots, _BELLY * size + body.belly) + 0.85 * spine_y
    reach = np.interp(along, knots, _SPINE_TO_FASCIA * size)
    reach = reach + np.clip(curve.at(body.back_line, along) - spine_y, -2, 14)

    total_back, total_front = reach + back_fat, belly + front_fat
    middle, half_depth = (total_back - total_front) / 2, (total_back + total_front) / 2
    half_width = (145 + 0.8 * person.fat_mm + 0.5 * max(person.girth_mm, -40)) * size
    furrow = 5 * np.exp(-((beside / 20) ** 2)) * np.clip((along - knots[0]) / 60, 0, 1) * (behind > 0)
    round_ = np.abs(beside / half_width) ** 2.8 + np.abs((behind - middle + furrow) / half_depth) ** 2.8
    f["skin"] = (round_ ** (1 / 2.8) - 1) * half_depth
    share = np.clip(behind / 40 + 0.5, 0, 1)
    f["fascia"] = f["skin"] + front_fat + (back_fat - front_fat) * share + 0.8 * f["low2"]
    f["peritoneum"] = f["fascia"] + 7.5 + 2.5 * f["low"]
    return reach


def _muscles(body, f, behind, beside, along, reach) -> None:
    """Psoas, quadratus lumborum and the two columns of back muscles."""
    spine, size = body.spine, body.person.stature
    low, low2 = f["low"], f["low2"]
    width = np.interp(f["s"], spine.middles, body.psoas)
    at_u = np.interp(f["s"], spine.middles, body.half_widths) + 0.75 * width - 2
    at_v = -15 * size - 0.018 * width * width
    psoas = np.hypot((np.abs(f["u"]) - at_u) / 0.86, (f["v"] - at_v) / 1.12) - width
    f["psoas"] = psoas + low2 + 2.2 * low
    out = np.abs(beside) - 56 * size
    quadratus = np.hypot(out / 14, (behind - 1 + 0.35 * out - 2 * low) / 6.5) - 1
    f["quadratus"] = 6.5 * quadratus + low2
    aside = np.abs(beside) + 2.5 * low
    lower = np.clip((along - spine.middles[L1 + 2]) / 90, 0, 1)
    multifidus = np.hypot((aside - 16 * size) / 15, (behind - 0.55 * reach) / (0.50 * reach)) - 1
    erector_u, erector_half = (46 - 9 * lower) * size, (27 - 8 * lower) * size
    erector = np.hypot((aside - erector_u) / erector_half, (behind - 0.52 * reach - 1) / (0.46 * reach)) - 1
    f["multifidus"] = np.maximum(14 * multifidus + 0.8 * low2, f["fascia"] + 1.2)
    f["erector"] = np.maximum(19 * erector + low2, f["fascia"] + 1.2)


def _vessels(body, f) -> None:
    """Aorta with its fork above L5, and the vena cava on its right."""
    spine, size = body.spine, body.person.stature
    s, u, v, low2, scale = f["s"], f["u"], f["v"], f["low2"], body.person.vessel_scale
    fork = np.clip(s - spine.middles[L5 - 1], 0, 200)
    depth = np.interp(s, spine.middles, body.depths)
    sway = 5 * np.sin(s / 38 + body.shift[0]) + 2 * np.sin(s / 17 + body.shift[1])
    left = np.hypot(u - 13 - 0.42 * fork - sway, v + depth + 12 - 0.10 * fork + 0.4 * sway)
    left = left - 8.0 * size * scale * (1 - 0.003 * fork) + 0.8 * low2
    right = np.hypot(u + 0.50 * fork + 4, v + depth + 9 - 0.15 * fork) - 6 * size * scale
    f["aorta"] = np.minimum(left, right + np.maximum(10 - fork, 0))
    cava = np.hypot((u + 17 + 0.45 * fork - 0.5 * sway) / (11 * scale), (v + depth + 7 - 0.25 * fork) / (7.5 * scale))
    f["cava"] = 7.5 * size * (cava - 1) + 1.2 * low2 + f["low"]


def _organs(body, f, behind, beside) -> None:
    """Kidneys, liver, bladder, rectum: bent ellipsoids."""
    spine = body.spine
    low, low2 = f["low"], f["low2"]

    def above(vertebra: int) -> np.ndarray:
        return f["z"] - float(spine.curve.at(spine.curve.z, spine.middles[vertebra]))

    def ellipsoid(*axes: np.ndarray) -> np.ndarray:
        return np.sqrt(sum(axis * axis for axis in axes)) - 1

    up = above(L1 + 1)
    f["kidney"] = 24 * ellipsoid((np.abs(beside) - 62) / 28, (behind + 38 + 0.2 * up) / 24, up / 52) + 2.5 * low
    f["liver"] = 60 * ellipsoid((beside + 92) / 97, (behind + 95) / 62, (above(L1) - 55) / 80) + 12 * low
    f["bladder"] = 30 * ellipsoid((behind + 108) / 34, beside / 40, above(S1 + 3) / body.bladder)
    if body.person.pelvic_mass_mm > 0:
        lumps = ellipsoid((behind + 72) / 1.1, beside - 8 * np.sin(body.shift[2]), above(S1 + 3) - 12)
        f["mass"] = lumps + 1 - body.person.pelvic_mass_mm + 5 * low + 1.5 * low2
    x, y, z = (f[name] - centre for name, centre in zip("xyz", body.rectum, strict=True))
    f["rectum"] = 13 * ellipsoid(x / 17, y / 13, z / 20) + 4 * low + 1.5 * low2


def _iliac_field(body, f: dict[str, np.ndarray], beside: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Signed distance in mm to the iliac wings: a plate from beside the sacrum outward and forward, up to L4/5."""
    spine, size = body.spine, body.person.stature
    aside, back = np.abs(beside) / size - 50, behind / size - 8 - body.ilium_offset
    across, along = 0.8 * aside + 0.6 * back, 0.6 * aside - 0.8 * back
    thick = 4 + 5 * np.exp(-((along / 18) ** 2))
    plate = np.abs(across - 0.0035 * along * along * np.sign(along) * 0.3) - thick
    height = (f["z"] - float(spine.curve.at(spine.curve.z, spine.middles[S1]))) / size
    crest = 8 + body.ilium_height + 0.55 * along - 0.0035 * along * along
    inside = np.maximum(np.maximum(plate, height - crest), np.maximum(-26 - along, along - 105))
    return (np.maximum(inside, -height - 75) * size + 0.8 * f["low2"]).astype(f["z"].dtype)


def paint_surroundings(body, f: dict[str, np.ndarray], grain: np.ndarray, marbling: np.ndarray, canvas) -> None:
    """From the skin inward to muscles and vessels; the spine goes on top. `grain` is noise of a pixel's size,
    `marbling` of the size of the fat streaks in muscle."""
    soft = canvas.softness
    fine = grain * 0.05 + f["low2"] * 0.035
    canvas.paint(edge(f["skin"], 1.2), Tissue.SKIN)
    canvas.paint(edge(f["skin"] + 1.8, 1.0), Tissue.FAT, fine)
    septa = edge(np.abs(f["gut"]) * 4 - 0.2, 0.8) * edge(f["skin"] + 4, 2)
    canvas.paint(septa * body.septa, Tissue.FASCIA)
    canvas.paint(edge(f["fascia"], soft), Tissue.FASCIA)
    canvas.paint(edge(f["fascia"] + 1.0, soft), Tissue.MUSCLE, 0.06 * grain + 0.05 * f["low2"])
    cavity = edge(f["peritoneum"], 1.5)
    if cavity.any():
        _paint_belly(f, grain, marbling, cavity, fine, canvas, ascites=body.person.ascites)

    streaks = body.streaks.take(body.spine.index(f["s"])) * 1.5 - 0.8
    streaks = np.clip(streaks + 0.12 * f["gut"] + 0.3 * marbling, 0, 1)
    texture = 0.07 * grain + 0.05 * f["low2"]
    canvas.paint(edge(4 - f["v"], 4.0) * edge(f["fascia"] + 1, soft), Tissue.FAT, fine - 0.15)
    for name in ("erector", "multifidus"):
        canvas.paint(edge(f[name] - 0.4 - 0.8 * f["gut"], soft), Tissue.FAT, fine - 0.25)
        canvas.paint_mixture(edge(f[name], soft), streaks, Tissue.MUSCLE, Tissue.FAT, texture)
    for name in ("psoas", "quadratus"):
        canvas.paint_mixture(edge(f[name], soft), streaks * 0.5, Tissue.MUSCLE, Tissue.FAT, texture)
    if f["ilium"].min(initial=1) < 2:
        canvas.paint(edge(f["ilium"], soft), Tissue.CORTEX)
        canvas.paint(edge(f["ilium"] + 1.3, soft), Tissue.MARROW, 0.1 * grain + 0.08 * f["low2"])
    for name in ("aorta", "cava"):
        canvas.paint(edge(f[name] - 1.2, soft), Tissue.FASCIA)
        canvas.paint(edge(f[name], soft), Tissue.BLOOD, 0.3 * f["low2"])


def _paint_belly(f, grain, marbling, cavity, fine, canvas, *, ascites: float) -> None:
    """Fat with loops of bowel where slow noise is high, filled with one thing or another; then the organs."""
    haze = 0.10 * f["low2"] + 0.13 * f["content"] + 0.10 * f["gut"]
    canvas.paint(cavity, Tissue.FAT, haze + fine - 0.15)
    if ascites > 0:
        free = edge(f["low"] + f["content"] * 0.4 + (1.2 - 2.4 * ascites), 0.5) * edge(f["v"] + 50, 6.0)
        canvas.paint(cavity * free, Tissue.FLUID, haze)
    level = f["gut"] + 0.3 * f["low"] + 0.15 * marbling
    # Bowel hangs in front: behind it lie the great vessels in their fat.
    free = edge(f["peritoneum"] + 3, 3) * edge(f["v"] + 56 + 9 * f["low"], 8.0)
    loops = edge(0.05 - level, 0.3) * free
    canvas.paint(loops, Tissue.BOWEL, 0.30 * f["low2"] + 0.10 * grain)
    filled = loops * edge(0.45 - level, 0.35)
    kind = f["content"] + 0.3 * f["low2"]
    canvas.paint(filled * edge(0.45 - kind, 0.6) * 0.55, Tissue.FLUID, 0.15 * f["low2"] - 0.35)
    canvas.paint(filled * edge(0.55 + kind, 0.4), Tissue.GAS)
    canvas.paint(edge(f["liver"], 2.0) * cavity, Tissue.LIVER, 0.06 * grain + 0.04 * f["low2"])
    canvas.paint(edge(f["kidney"], 1.5), Tissue.KIDNEY, 0.1 * f["low2"])
    canvas.paint(edge(f["kidney"] + 13 + 3 * f["low2"], 4.0) * 0.75, Tissue.FAT, haze)
    if "mass" in f:
        canvas.paint(edge(f["mass"], 2.0) * cavity, Tissue.MUSCLE, 0.15 * grain + 0.35 * f["low2"])
        canvas.paint(edge(f["mass"] + 9 + 4 * f["gut"], 3.0) * cavity * 0.6, Tissue.LIVER, 0.3 * f["content"])
    canvas.paint(edge(f["bladder"], 1.5) * cavity, Tissue.MUSCLE)
    canvas.paint(edge(f["bladder"] + 3, 1.5) * cavity, Tissue.FLUID)
    canvas.paint(edge(f["rectum"], 1.5), Tissue.MUSCLE)
    canvas.paint(edge(f["rectum"] + 3, 1.5), Tissue.BOWEL, 0.3 * f["gut"] - 0.2)
    gas = np.maximum(f["rectum"] + 3, f["v"] + 38 + 6 * f["low"])
    canvas.paint(edge(gas, 2.0), Tissue.GAS)
