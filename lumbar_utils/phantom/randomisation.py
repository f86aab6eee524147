"""People for domain randomisation: build, degeneration and pathology far more varied than in any population.

A localizer that is trained on them meets everything that makes one disc look like its neighbour: bright and black discs
anywhere, fused and collapsed levels, transitional vertebrae, operated and very thin or wide people. The stenosis
degrees stay the population's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..labels import N_LEVELS
from .person import Person

TRANSITION_RATE = 0.12


def randomised(person: Person, rng: np.random.Generator) -> Person:
    """A far broader person in the place of an ordinary one; what is not redrawn here stays."""
    lordosis = rng.uniform(5, 80) if rng.random() < 0.5 else np.clip(rng.normal(44, 13), 5, 80)
    wide = {
        "stature": rng.uniform(0.72, 1.25),
        "lordosis_degrees": lordosis,
        "sacral_slope_degrees": np.clip(0.75 * lordosis + 3 + 8 * rng.standard_normal(), 10, 70),
        "sacral_kyphosis_degrees": rng.uniform(20, 95),
        "scoliosis_degrees": np.clip(16 * rng.standard_normal(), -50, 50) * (rng.random() < 0.6),
        "counter_curve": rng.uniform(-0.9, 0.2),
        "sac_scale": rng.uniform(0.65, 1.4),
        "fat_mm": np.exp(rng.uniform(np.log(3), np.log(110))),
        "girth_mm": rng.normal(0, 25),
        "sacral_disc": rng.beta(0.7, 1.3),
        "height_spread": rng.uniform(0.02, 0.08),
        "disc_spread": rng.uniform(0.05, 0.20),
        "conus_shift_mm": rng.uniform(-45, 55),
        "epidural_fat": rng.uniform(0.3, 1) if rng.random() < 0.12 else 0.0,
        "vessel_scale": rng.uniform(0.6, 1.6),
        "pelvic_mass_mm": rng.uniform(15, 50) if rng.random() < 0.3 else 0.0,
        "ascites": rng.uniform(0.2, 1) if rng.random() < 0.08 else 0.0,
        "transition": rng.uniform(0.15, 0.5) * rng.choice([-1, 1]) if rng.random() < TRANSITION_RATE else 0.0,
    }
    wide["rotation_degrees"] = wide["scoliosis_degrees"] * rng.uniform(0.2, 0.9)
    made = {name: float(value) for name, value in wide.items()} | _wear(person, rng) | _pathology(rng) | _shape(rng)
    return replace(person, **(_dysplastic(made, rng) if rng.random() < 0.12 else made))


def _shape(rng: np.random.Generator) -> dict:
    """Wedges and heights far beyond a population's: what is counted on must not be one proportion."""
    return {
        "sacral_heights": np.clip(0.9 * np.exp(0.17 * rng.standard_normal(2)), 0.58, 1.3),
        "body_wedge_degrees": np.array([2.5, 2.5, 2.5, 3.5, 6.0]) * rng.standard_normal(N_LEVELS),
        "disc_wedge_degrees": np.array([2.0, 2.0, 2.5, 3.5, 6.0]) * rng.standard_normal(N_LEVELS),
    }


def _dysplastic(made: dict, rng: np.random.Generator) -> dict:
    """A steep lumbosacral junction: trapezoid L5 with a short back wall, domed S1, slip up to high grade, and in some
    a kyphosis there (Meyerding 1932; lumbar index: Marchetti 1997)."""
    severe = rng.random()
    body, disc, slip = (made[name].copy() for name in ("body_wedge_degrees", "disc_wedge_degrees", "listhesis_mm"))
    body[-1] += rng.uniform(5, 26)
    disc[-1] += rng.uniform(0, 10) if rng.random() < 0.7 else -rng.uniform(5, 30)
    body[:-1] -= rng.uniform(0, 4, N_LEVELS - 1)
    if rng.random() < 0.6:
        slip[-1] = rng.uniform(3, 8) + 16 * severe * rng.random()
    return made | {
        "body_wedge_degrees": body,
        "disc_wedge_degrees": disc,
        "listhesis_mm": slip,
        "sacral_slope_degrees": float(rng.uniform(42, 72)),
        "short_back_mm": float(rng.uniform(0, 7)),
        "dome_mm": float(rng.uniform(1, 7) * (rng.random() < 0.6)),
    }


def _wear(person: Person, rng: np.random.Generator) -> dict:
    """Degeneration that need not follow age or level, and what goes with it."""
    kind = rng.choice(["as drawn", "young", "upper", "anyhow", "all"], p=[0.25, 0.2, 0.1, 0.35, 0.1])
    worn = {
        "as drawn": person.degeneration,
        "young": rng.uniform(0, 0.15, N_LEVELS),
        "upper": np.clip(np.array([1, 0.9, 0.5, 0.1, 0.05]) + 0.15 * rng.standard_normal(N_LEVELS), 0, 1),
        "anyhow": rng.random(N_LEVELS),
        "all": rng.uniform(0.7, 1, N_LEVELS),
    }[kind]
    slipped = rng.random(N_LEVELS) < 0.06
    slip = np.where(slipped, rng.uniform(3, 15, N_LEVELS) * rng.choice([1, 1, -0.4], N_LEVELS), 0.4)
    herniated = rng.random(N_LEVELS) < 0.08
    return {
        "degeneration": worn,
        "bulge_mm": np.clip(0.3 + 3.0 * worn + rng.standard_normal(N_LEVELS), 0, 6),
        "modic": np.where(rng.random(N_LEVELS) < 0.15, rng.integers(1, 4, N_LEVELS), 0),
        "listhesis_mm": slip,
        "herniation_mm": herniated * rng.uniform(3, 9, N_LEVELS),
        "herniation_at_mm": rng.uniform(-8, 8, N_LEVELS),
    }


def _pathology(rng: np.random.Generator) -> dict:
    """Fractures, nodes, block vertebrae, marrow disease, operations."""
    fracture = np.zeros((7, 2))
    if rng.random() < 0.15:
        for vertebra in rng.choice(7, rng.integers(1, 4), replace=False):
            fracture[vertebra, rng.integers(2)] = rng.uniform(0.15, 0.55)
    schmorl = np.where(rng.random(7) < 0.08, rng.uniform(2, 7, 7) * rng.choice([-1, 1], 7), 0)
    marrow = np.zeros(8)
    kind = rng.random()
    if kind < 0.10:  # a few vertebrae
        chosen = rng.choice(8, rng.integers(1, 4), replace=False)
        marrow[chosen] = rng.uniform(0.4, 1, len(chosen)) * rng.choice([-1, 1], len(chosen))
    elif kind < 0.14:  # all of them
        marrow[:] = rng.uniform(0.2, 0.9) * rng.choice([-1, 1])
    laminectomy = np.zeros(N_LEVELS, dtype=bool)
    if rng.random() < 0.1:
        first = rng.integers(1, N_LEVELS)
        laminectomy[first : first + rng.integers(1, 4)] = True
    return {
        "fracture": fracture,
        "schmorl_mm": schmorl,
        "marrow": marrow,
        "fused": int(rng.integers(N_LEVELS - 1)) if rng.random() < 0.04 else -1,
        "laminectomy": laminectomy,
        "wound": int(rng.integers(3)),
    }
