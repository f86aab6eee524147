"""What lies around the spine: skin, fat, muscles, vessels, bowel, kidneys, bladder.

All of it is smooth on the scale of several millimetres, so its signed distances are worked out on a coarse lattice
of points and spread from there; only the masks and the texture are made at every point.
"""

from __future__ import annotations

import numpy as np

from .profiles import L1, L5, S1
from .texture import clouds
from .tissue import Tissue, edge

_F = np.float32


def smooth_fields(body, xyz: np.ndarray) -> dict[str, np.ndarray]:
    """Smooth fields at body points (..., 3): straightened coordinates, signed distances in mm and slow noise."""
    spine, person = body.spine, body.person
    curve, size = spine.curve, person.stature
    s, u, v = curve.project(xyz)
    x, y, z = xyz[..., 0], xyz[..., 1], xyz[..., 2]
    line = np.interp(-z, -curve.z, np.arange(len(curve.z)))
    back = y - np.interp(line, np.arange(len(curve.y)), curve.y)
    side = x - 0.4 * np.interp(line, np.arange(len(curve.y)), curve.sideways)
    where = line * 0.25  # mm along the spine at this height
    knots = spine.middles[[3, L1, L1 + 2, L5, S1, S1 + 1, S1 + 3, S1 + 5]]
    fat = np.interp(where, knots, person.fat_mm * np.array([0.35, 0.6, 0.9, 1.15, 1.25, 1.1, 0.9, 1.1]) + 4)
    reach = np.interp(where, knots, np.array([43, 48, 50, 46, 34, 27, 20, 16]) * size)
    # Neither the belly nor the skin of the back follow the spine's bends.
    belly = np.interp(where, knots, np.array([104, 114, 118, 116, 112, 108, 100, 95]) * size + body.belly)
    belly = belly + 0.85 * (y - back)
    reach = reach + np.clip(curve.at(body.back_line, where) - (y - back), -2, 14)
    front_fat = np.interp(where, knots, (0.5 * person.fat_mm + 5) * np.array([0.5, 0.7, 1, 1.3, 1.5, 1.5, 1.2, 1]))
    low, low2 = (clouds(x, y, z, size_mm, body.shift) for size_mm in (34.0, 11.0))

    total_back, total_front = reach + fat, belly + front_fat
    middle, half_depth = (total_back - total_front) / 2, (total_back + total_front) / 2
    half_width = (145 + 0.8 * person.fat_mm) * size
    furrow = 5 * np.exp(-((side / 20) ** 2)) * np.clip((where - knots[0]) / 60, 0, 1)
    outline = (np.abs(side / half_width) ** 2.8 + np.abs((back - middle + furrow * (back > 0)) / half_depth) ** 2.8) ** (1 / 2.8)
    skin = (outline - 1) * half_depth
    share = np.clip(back / 40 + 0.5, 0, 1)
    fascia = skin + front_fat + (fat - front_fat) * share + 0.8 * low2
    fields = dict(s=s, u=u, v=v, x=x, y=y, z=z, skin=skin, fascia=fascia, low=low, low2=low2)

    limit = np.abs(v) < 200
    width = np.where(limit, np.interp(s, spine.middles, body.psoas), 0)
    at_u = np.interp(s, spine.middles, spine_half(spine)) + 0.75 * width - 2
    psoas = np.hypot((np.abs(u) - at_u) / 0.86, (v + 15 * size + 0.018 * width * width) / 1.12) - width
    fields["psoas"] = psoas + 1.0 * low2 + 2.2 * low
    turned = back - 1 + 0.35 * (np.abs(side) - 56 * size)
    fields["quadratus"] = (np.hypot((np.abs(side) - 56 * size) / 14, (turned - 2 * low) / 6.5) - 1) * 6.5 + low2
    # The back muscles: a compartment on each side between the fascia, the laminae and the spinous processes.
    aside, lower = np.abs(side) + 2.5 * low, np.clip((where - knots[2]) / 90, 0, 1)
    multifidus = np.hypot((aside - 16 * size) / 15, (back - 0.55 * reach) / (0.50 * reach)) - 1
    erector_u, erector_w = (46 - 9 * lower) * size, (27 - 8 * lower) * size
    erector = np.hypot((aside - erector_u) / erector_w, (back - 0.52 * reach - 1) / (0.46 * reach)) - 1
    fields["multifidus"] = np.maximum(14 * multifidus + 0.8 * low2, fascia + 1.2)
    fields["erector"] = np.maximum(19 * erector + 1.0 * low2, fascia + 1.2)
    spread = np.clip(where - spine.middles[L5 - 1], 0, 200)
    depth = np.interp(s, spine.middles, spine_depth(spine))
    sway = 5 * np.sin(s / 38 + body.shift[0]) + 2 * np.sin(s / 17 + body.shift[1])
    aorta_u, aorta_v = u - 13 - 0.42 * spread - sway, v + depth + 12 - 0.10 * spread + 0.4 * sway
    fields["aorta"] = np.hypot(aorta_u, aorta_v) - 8.0 * size * (1 - 0.003 * spread) + 0.8 * low2
    artery = np.hypot(u + 0.50 * spread + 4, v + depth + 9 - 0.15 * spread) - 6 * size
    fields["aorta"] = np.where(spread > 4, np.minimum(fields["aorta"], artery), fields["aorta"])
    fields["cava"] = (np.hypot((u + 17 + 0.45 * spread - 0.5 * sway) / 11, (v + depth + 7 - 0.25 * spread) / 7.5) - 1) * 7.5 * size + 1.2 * low2 + low
    kidney_z = z - np.interp(spine.middles[L1 + 1] * 4, np.arange(len(curve.z)), curve.z)
    fields["kidney"] = (
        np.sqrt(((np.abs(side) - 62) / 28) ** 2 + ((back + 38 + 0.2 * kidney_z) / 24) ** 2 + (kidney_z / 52) ** 2) - 1
    ) * 24 + 2.5 * low
    fields["peritoneum"] = fascia + 7.5 + 2.5 * low
    rectum = np.sqrt((((xyz - body.rectum.astype(xyz.dtype)) / np.array([17, 13, 20], xyz.dtype)) ** 2).sum(-1))
    fields["rectum"] = (rectum - 1) * 13 + 4 * low + 1.5 * low2
    bladder_z = z - np.interp(spine.middles[S1 + 3] * 4, np.arange(len(curve.z)), curve.z)
    fields["bladder"] = (np.sqrt(((back + 108) / 34) ** 2 + (side / 40) ** 2 + (bladder_z / body.bladder) ** 2) - 1) * 30
    fields["gut"] = clouds(x + 6 * low, y + 6 * low, z + 6 * low2, 8.5, body.shift[::-1])
    fields["content"] = clouds(x + 5 * low2, y, 0.6 * z + 8 * low, 13.0, body.shift[[1, 0, 2]])
    liver_z = z - np.interp(spine.middles[L1] * 4, np.arange(len(curve.z)), curve.z)
    liver = ((side + 75) / 100) ** 2 + ((back + 95) / 62) ** 2 + ((liver_z - 55) / 80) ** 2
    fields["liver"] = (np.sqrt(liver) - 1) * 60 + 12 * low
    return fields


def spine_half(spine) -> np.ndarray:
    """Half width of every vertebra at its middle, mm."""
    return spine.half_width[spine.index(spine.middles.astype(np.float32))]


def spine_depth(spine) -> np.ndarray:
    """Depth of every vertebra at its middle, mm."""
    return spine.depth[spine.index(spine.middles.astype(np.float32))]


def paint_surroundings(body, f: dict[str, np.ndarray], grain: np.ndarray, coarse: np.ndarray, paint) -> None:
    """From the skin inward to the muscles and vessels; the spine goes on top."""
    soft = paint.softness
    inside = edge(f["skin"], 1.2)
    paint.lay(inside, Tissue.SKIN)
    fine = grain * _F(0.05) + f["low2"] * _F(0.035)
    paint.lay(edge(f["skin"] + _F(1.8), 1.0), Tissue.FAT, fine)
    # Thin septa run through the fat under the skin.
    paint.lay(edge(np.abs(f["gut"]) * 4 - _F(0.2), 0.8) * edge(f["skin"] + 4, 2) * _F(0.13), Tissue.FASCIA)
    paint.lay(edge(f["fascia"], soft), Tissue.FASCIA)
    paint.lay(edge(f["fascia"] + _F(1.0), soft), Tissue.MUSCLE, _F(0.12) * grain + _F(0.1) * f["low2"])

    cavity = edge(f["peritoneum"], 1.5)
    if cavity.any():
        haze = _F(0.10) * f["low2"] + _F(0.13) * f["content"] + _F(0.10) * f["gut"]
        paint.lay(cavity, Tissue.FAT, haze + fine - _F(0.15))
        # Loops of bowel where slow noise is high; their walls where it passes a level, their content by other noise.
        level = f["gut"] + _F(0.3) * f["low"] + _F(0.15) * coarse
        free = edge(f["peritoneum"] + 3, 3) * edge(f["v"] + _F(56) + 9 * f["low"], 8.0)
        loops = edge(_F(0.05) - level, 0.3) * free
        paint.lay(loops, Tissue.BOWEL, _F(0.30) * f["low2"] + _F(0.10) * grain)
        filled = loops * edge(_F(0.45) - level, 0.35)
        kind = f["content"] + _F(0.3) * f["low2"]
        paint.lay(filled * edge(_F(0.45) - kind, 0.6) * _F(0.55), Tissue.FLUID, _F(-0.35) + _F(0.15) * f["low2"])
        paint.lay(filled * edge(_F(0.55) + kind, 0.4), Tissue.GAS)
        paint.lay(edge(f["liver"], 2.0) * cavity, Tissue.LIVER, _F(0.06) * grain + _F(0.04) * f["low2"])
        paint.lay(edge(f["kidney"], 1.5), Tissue.KIDNEY, _F(0.1) * f["low2"])
        paint.lay(edge(f["kidney"] + 13 + 3 * f["low2"], 4.0) * _F(0.75), Tissue.FAT, haze)
        paint.lay(edge(f["bladder"], 1.5) * cavity, Tissue.MUSCLE)
        paint.lay(edge(f["bladder"] + 3, 1.5) * cavity, Tissue.FLUID)
        paint.lay(edge(f["rectum"], 1.5), Tissue.MUSCLE)
        paint.lay(edge(f["rectum"] + 3, 1.5), Tissue.BOWEL, _F(0.3) * f["gut"] - _F(0.2))
        gas = np.maximum(f["rectum"] + 3, f["v"] + _F(38) + 6 * f["low"])
        paint.lay(edge(gas, 2.0), Tissue.GAS)
    streak = np.clip(body.streaks.take(body.spine.index(f["s"])) * _F(1.5) + _F(0.3) * f["gut"] + _F(0.3) * coarse - _F(0.8), 0, 1)
    muscle_texture = _F(0.14) * grain + _F(0.12) * f["low2"]
    behind = edge(_F(4) - f["v"], 4.0) * edge(f["fascia"] + 1, soft)
    paint.lay(behind, Tissue.FAT, fine - _F(0.15))
    for name in ("erector", "multifidus"):
        paint.lay(edge(f[name] - _F(0.4) - _F(0.8) * f["gut"], soft), Tissue.FAT, fine - _F(0.25))
        paint.blend(edge(f[name], soft), streak, Tissue.MUSCLE, Tissue.FAT, muscle_texture)
    for name in ("psoas", "quadratus"):
        paint.blend(edge(f[name], soft), streak * _F(0.5), Tissue.MUSCLE, Tissue.FAT, muscle_texture)
    for name, tissue in (("aorta", Tissue.BLOOD), ("cava", Tissue.BLOOD)):
        paint.lay(edge(f[name] - _F(1.2), soft), Tissue.FASCIA)
        paint.lay(edge(f[name], soft), tissue, _F(0.3) * f["low2"])
