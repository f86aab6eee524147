"""What makes two scans of one body differ: contrast, coil, noise, ghosts, metal, borders.

Each is sampled plainly, as hospitals scan, or randomised far beyond what scanners do.
"""

from __future__ import annotations

import numpy as np

from ..labels import N_LEVELS, SAGITTAL_T1, SAGITTAL_T2
from .anatomy import Body
from .signal import Sequence, random_signal, tissue_signal
from .tissue import Tissue

_FATTY = [Tissue.FAT, Tissue.EPIDURAL_FAT, Tissue.FATTY_MARROW]


def sample_contrast(
    rng: np.random.Generator, view: str, tesla: float, *, randomise: bool
) -> tuple[Sequence, np.ndarray]:
    """A sequence that belongs to the view, and the signal of every tissue."""
    if view == SAGITTAL_T1:
        sequence = Sequence(rng.uniform(480, 720), rng.uniform(8, 14), 0.0, tesla)
    elif view == SAGITTAL_T2 and rng.random() < 0.22:
        sequence = Sequence(
            rng.uniform(3500, 5500), rng.uniform(45, 75), rng.uniform(150, 170) + 40 * (tesla > 2), tesla
        )
    else:
        sequence = Sequence(rng.uniform(2800, 4500), rng.uniform(85, 118), 0.0, tesla)
    if randomise and rng.random() < 0.5:
        return sequence, random_signal(rng)
    return sequence, tissue_signal(sequence, rng, spread=0.15 if randomise else 0.05)


def sample_localizer_contrast(rng: np.random.Generator, tesla: float) -> tuple[Sequence, np.ndarray]:
    """For the localizer: one half any sagittal sequence of a spine protocol, the other half random signal."""
    if rng.random() < 0.5:
        return Sequence(3000, 90, 0.0, tesla), random_signal(rng)
    kind = rng.choice(
        ["T2", "T1", "STIR", "PD", "gradient echo", "fat-saturated T1"], p=[0.4, 0.2, 0.2, 0.06, 0.06, 0.08]
    )
    if kind == "STIR":
        sequence = Sequence(
            rng.uniform(3000, 6000), rng.uniform(30, 85), rng.uniform(140, 180) + 40 * (tesla > 2), tesla
        )
    else:
        repetition, echo = {
            "T2": ((2500, 5500), (75, 130)),
            "PD": ((1800, 3500), (12, 40)),
            "gradient echo": ((400, 900), (10, 22)),
        }.get(kind, ((400, 900), (7, 18)))
        sequence = Sequence(rng.uniform(*repetition), rng.uniform(*echo), 0.0, tesla)
    signal = tissue_signal(sequence, rng, spread=0.15)
    if kind == "fat-saturated T1":
        signal[_FATTY] *= np.float32(rng.uniform(0.05, 0.35))
        signal[Tissue.MARROW] *= np.float32(rng.uniform(0.35, 0.7))
    elif kind == "gradient echo":  # trabeculae dephase marrow, water stays
        signal[[Tissue.MARROW, Tissue.FATTY_MARROW]] *= np.float32(rng.uniform(0.15, 0.5))
        signal[[Tissue.CSF, Tissue.NUCLEUS, Tissue.FLUID, Tissue.BLOOD]] += np.float32(rng.uniform(0.2, 0.5))
    return sequence, signal


def sample_imperfections(body: Body, rng: np.random.Generator, *, randomise: bool) -> dict:
    """Fields of `protocol.Protocol`: coil, noise, ghosts, saturation band, bias, and when randomised the rest."""
    canal = body.truth.canal
    back = canal.mean(0) + np.array([0, 55 + body.person.fat_mm, 0])
    result = dict(
        noise=float(np.exp(rng.normal(np.log(0.022), 0.45))),
        coil_depth_mm=rng.uniform(85, 230) if rng.random() < 0.65 else float("inf"),
        coil_centre=back + np.array([0, 0, rng.normal(0, 25)]),
        coil_length_mm=rng.uniform(300, 460),
        saturation_mm=rng.uniform(12, 30) if rng.random() < 0.25 else float("inf"),
        ghost=rng.gamma(1.5, 0.008),
        bias=0.05 * rng.standard_normal(6),
        grain=rng.uniform(0.8, 1.4),
        gain=float(np.exp(rng.normal(np.log(900), 0.45))),
    )
    if randomise:
        result.update(
            noise=float(np.exp(rng.uniform(np.log(0.005), np.log(0.12)))),
            coil_depth_mm=rng.uniform(40, 250) if rng.random() < 0.7 else float("inf"),
            coil_centre=back + np.array([0, 0, rng.normal(0, 45)]),
            coil_length_mm=rng.uniform(200, 460),
            saturation_mm=rng.uniform(-5, 40) if rng.random() < 0.4 else float("inf"),
            saturation_floor=rng.uniform(0, 0.7),
            ghost=rng.gamma(1.2, 0.03) * (rng.random() < 0.6),
            phase_axis=int(rng.integers(2)),
            ghost_shift=rng.uniform(0.08, 0.5),
            fold=rng.uniform(0.04, 0.2) if rng.random() < 0.1 else 0.0,
            apodised=bool(rng.random() < 0.7),
            blur=rng.uniform(0.2, 0.6) if rng.random() < 0.25 else 0.0,
            border=_border(rng),
            metal=_metal(body, rng),
            bias=(0.6 if rng.random() < 0.2 else 0.3) * rng.standard_normal(6),
            grain=rng.uniform(0.2, 3.0),
        )
    return result


def _border(rng: np.random.Generator) -> list[float]:
    """Empty shares of the image above, below, left and right, as padding to a square leaves them."""
    kind = rng.random()
    border = np.zeros(4)
    if kind < 0.08:
        border[rng.choice([0, 2, 3])] = rng.uniform(0.02, 0.2)
    elif kind <= 0.25:
        border[2:] = rng.uniform(0.02, 0.15)
    return border.tolist()


def _metal(body: Body, rng: np.random.Generator) -> tuple[tuple[np.ndarray, float], ...]:
    """Implants: (LPS point, radius of the void in mm) at one to three levels, in disc, pedicle or behind the canal."""
    if rng.random() > 0.07:
        return ()
    first, n = int(rng.integers(N_LEVELS)), int(rng.integers(1, 4))
    forward, side = rng.uniform(-0.4, 1.0), rng.uniform(-22, 22)
    radius = rng.uniform(5, 16) * body.person.stature
    truth = body.truth
    places = []
    for level in range(first, min(first + n, N_LEVELS)):
        at = truth.canal[level] + forward * (truth.centre[level] - truth.canal[level]) + np.array([side, 0, 0])
        places.append((at + rng.normal(0, 2, 3), float(radius * rng.uniform(0.8, 1.2))))
    return tuple(places)
