"""Who lies in the scanner: a person's 25 degrees of stenosis, the wear that goes with them, and the build.

The degrees come from a Gaussian copula. Per target a standard normal `z` is drawn with the correlations
below, and `u = offset + scale * z` is what a reader perceives without error: a reader of standard deviation
`READER_SD` calls a target at least moderate where `u + noise > 1` and severe where it is `> 2`. Offset and
scale follow in closed form from the prevalences, so these are right at any cohort size and any reader noise.
Anatomy wants a bounded number, so the degree is `u` with both tails folded in (`degree_of`), which is
one to one: nothing a reader knows is lost.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
from scipy.special import ndtri

from ..labels import N_CONDITIONS, N_LEVELS, N_TARGETS
from ..studies.statistics import MODERATE_PERCENT, SEVERE_PERCENT
from .person import Person
from .randomisation import randomised

READER_SD = np.array([0.52, 0.45, 0.45, 0.50, 0.50])
"""Reader's standard deviation per condition, in degrees. With it plain frequencies score 0.36."""

SAME_LEVEL = np.array(
    [
        [1.000, 0.602, 0.602, 0.909, 0.909],
        [0.602, 1.000, 0.561, 0.603, 0.535],
        [0.602, 0.561, 1.000, 0.535, 0.603],
        [0.909, 0.603, 0.535, 1.000, 0.756],
        [0.909, 0.535, 0.603, 0.756, 1.000],
    ]
)
"""Correlation of `z` between conditions at one level."""

NEIGHBOURS = np.array(
    [
        [0.655, 0.752, 0.615, 0.440],
        [0.814, 0.937, 0.830, 0.617],
        [0.814, 0.937, 0.830, 0.617],
        [0.671, 0.719, 0.627, 0.440],
        [0.671, 0.719, 0.627, 0.440],
    ]
)
"""Correlation of `z` between a level and the next lower one, per condition.

This table and the one above are fitted, by iteration on 60,000 simulated studies, so that the *labels* have the
Spearman correlations of the competition's; those between `z` are larger because three classes and the reader's noise
dilute them. Pairs that nobody has published (subarticular neighbours, foraminal with subarticular) are interpolated.
"""

DISTANT = 0.8
"""Correlation over two levels against the product of the two steps; sets how many studies have a severe canal."""

_STREAM_DEGREES, _STREAM_BUILD, _STREAM_RANDOMISATION = 11, 12, 13


def degree_of(perceived: np.ndarray) -> np.ndarray:
    """Fold the unbounded `u` into the anatomical degree 0..3: the identity from 1 to 2, exponential tails."""
    u = np.asarray(perceived, dtype=np.float64)
    low, high = np.exp(np.minimum(u, 1.0) - 1.0), 3.0 - np.exp(-(np.maximum(u, 2.0) - 2.0))
    return np.where(u < 1, low, np.where(u > 2, high, u))


def perceived_of(degrees: np.ndarray) -> np.ndarray:
    """The inverse of `degree_of`. Degrees at the bounds 0 and 3 are taken a hair inside."""
    d = np.clip(np.asarray(degrees, dtype=np.float64), 1e-9, 3 - 1e-9)
    low, high = 1.0 + np.log(np.minimum(d, 1.0)), 2.0 - np.log(3.0 - np.maximum(d, 2.0))
    return np.where(d < 1, low, np.where(d > 2, high, d))


@cache
def _marginals() -> tuple[np.ndarray, np.ndarray]:
    """Offset and scale, each (25,), of `u = offset + scale * z`, from the prevalences and the reader's noise."""
    severe = SEVERE_PERCENT.ravel() / 100
    above_moderate = severe + MODERATE_PERCENT.ravel() / 100
    first, second = -ndtri(above_moderate), -ndtri(severe)
    total = 1.0 / (second - first)
    return 1.0 - first * total, np.sqrt(total**2 - np.repeat(READER_SD, N_LEVELS) ** 2)


@cache
def _correlation_factor() -> np.ndarray:
    """(25, 25) factor `f` with `f @ f.T` the correlation matrix of `z`, the nearest that is possible."""
    chains = np.ones((N_CONDITIONS, N_LEVELS, N_LEVELS))
    for i, j in combinations(range(N_LEVELS), 2):
        chains[:, i, j] = chains[:, j, i] = np.prod(NEIGHBOURS[:, i:j], axis=1) * DISTANT ** (j - i - 1)
    blocks = SAME_LEVEL[:, None, :, None] * np.sqrt(chains[:, None] * chains[None]).swapaxes(1, 2)
    values, vectors = np.linalg.eigh(blocks.reshape(N_TARGETS, N_TARGETS))
    factor = vectors * np.sqrt(np.maximum(values, 1e-6))
    return factor / np.linalg.norm(factor, axis=1, keepdims=True)


def sample_person(index: int, seed: int, *, randomise: bool = False) -> Person:
    """Person `index` of the cohort `seed`, the same whatever else is drawn. `randomise` keeps the degrees of stenosis
    and samples build, degeneration and pathology far beyond a population."""
    z = _correlation_factor() @ np.random.default_rng([seed, index, _STREAM_DEGREES]).standard_normal(N_TARGETS)
    offset, scale = _marginals()
    rng = np.random.default_rng([seed, index, _STREAM_BUILD])
    wear = z.reshape(N_CONDITIONS, N_LEVELS)
    burden = float(np.clip(wear.mean() / 0.65, -2.5, 2.5))
    age = float(np.clip(57 + 9 * burden + 10 * rng.standard_normal(), 20, 92))
    male = bool(rng.random() < 0.47)
    # Lower discs degenerate earlier; degeneration goes with stenosis at its level and with age.
    base = np.array([-0.9, -0.6, -0.2, 0.3, 0.35])
    noise = rng.standard_normal(N_LEVELS)
    degenerated = base + 0.035 * (age - 57) + 0.3 * wear.mean(axis=0) + 0.4 * wear[1:3].mean(axis=0) + 0.5 * noise
    degeneration = 1 / (1 + np.exp(-1.6 * (degenerated + 0.1)))
    bulge = np.clip(0.6 + 2.4 * degeneration + 0.5 * wear[0] + 0.5 * rng.standard_normal(N_LEVELS), 0, 6)
    modic_chance = np.clip(0.45 * (degeneration - 0.45), 0.005, 0.3)
    kind = rng.choice([1, 2, 3], size=N_LEVELS, p=[0.3, 0.62, 0.08])
    modic = np.where(rng.random(N_LEVELS) < modic_chance, kind, 0)
    # Lying down: slope 37 +- 8, lordosis 44 +- 10 degrees, and the two go together (r about 0.7; Legaye 1998).
    slope = np.clip(36.5 + 8 * rng.standard_normal(), 16, 58)
    lordosis = np.clip(44 + 0.9 * (slope - 36.5) + 7 * rng.standard_normal() - 0.1 * (age - 57), 15, 75)
    person = Person(
        person_id=index,
        seed=int(rng.integers(2**31)),
        degrees=degree_of(offset + scale * z),
        degeneration=degeneration,
        bulge_mm=bulge,
        modic=modic,
        listhesis_mm=_slip(rng, wear[0], degeneration, male),
        haemangioma=int(rng.integers(N_LEVELS)) if rng.random() < 0.1 else -1,
        age=age,
        male=male,
        stature=float(np.clip((1.04 if male else 0.965) + 0.04 * rng.standard_normal(), 0.85, 1.16)),
        lordosis_degrees=float(lordosis),
        sacral_slope_degrees=float(slope),
        scoliosis_degrees=float(np.clip(3.5 * rng.standard_normal() * (1 + 0.8 * max(burden, 0)), -22, 22)),
        sac_scale=float(np.clip(1 + 0.09 * rng.standard_normal() - 0.02 * burden, 0.75, 1.25)),
        fat_mm=float(np.clip(rng.gamma(4.0, 6.0 if male else 7.5), 5, 75)),
        sacral_disc=float(rng.beta(1.3, 3.5)),
        # Transitional in 4 to 30 % of people by definition (Konin 2010), here in a tenth.
        transition=float(rng.uniform(0.15, 0.5) * rng.choice([-1, 1], p=[0.6, 0.4])) if rng.random() < 0.1 else 0.0,
        sacral_kyphosis_degrees=float(np.clip(58 + 14 * rng.standard_normal(), 30, 92)),
        fracture=_fractures(rng, age, male),
        schmorl_mm=_schmorl(rng),
        **_shape(rng),
        **_herniations(rng, degree_of(offset + scale * z).reshape(N_CONDITIONS, N_LEVELS)),
    )
    return randomised(person, np.random.default_rng([seed, index, _STREAM_RANDOMISATION])) if randomise else person


def _fractures(rng: np.random.Generator, age: float, male: bool) -> np.ndarray:
    """Osteoporotic wedges, at every age above 50 and mostly at T12 and L1 (prevalence: O'Neill 1996)."""
    rate = np.clip((age - 50) / 40, 0, 1) * (0.12 if male else 0.18)
    lost = np.zeros((7, 2))
    if rng.random() < rate:
        vertebra = rng.choice(7, p=[0.15, 0.27, 0.28, 0.12, 0.08, 0.06, 0.04])
        lost[vertebra, rng.integers(2)] = rng.uniform(0.12, 0.4)
    return lost


def _shape(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """How one person's vertebrae differ from another's of equal height and lordosis, mostly at the sacrum."""
    return {
        "sacral_heights": np.clip(np.array([0.93, 0.96]) + 0.085 * rng.standard_normal(2), 0.7, 1.2),
        "body_wedge_degrees": np.array([1.5, 1.5, 1.5, 2.0, 3.5]) * rng.standard_normal(N_LEVELS),
        "disc_wedge_degrees": np.array([1.2, 1.2, 1.5, 2.0, 3.5]) * rng.standard_normal(N_LEVELS),
    }


def _herniations(rng: np.random.Generator, degrees: np.ndarray) -> dict[str, np.ndarray]:
    """Focal herniations: part of what narrows a canal, the more often the narrower it is, towards the narrower side."""
    canal, _, _, left, right = degrees
    size = 1.5 + 1.6 * canal + 1.5 * rng.random(N_LEVELS)
    aside = 2.0 * (left - right) + 3.0 * rng.standard_normal(N_LEVELS)
    chosen = rng.random(N_LEVELS) < 0.15 * np.clip(canal - 0.2, 0, 2)
    return {"herniation_mm": chosen * size, "herniation_at_mm": np.clip(aside, -9, 9)}


def _schmorl(rng: np.random.Generator) -> np.ndarray:
    """Schmorl's nodes in one person of five, more of them in the upper discs (Mok 2010: 16.5 %)."""
    depth = rng.uniform(1.5, 4, 7) * rng.choice([-1, 1], 7)
    chosen = rng.random(7) < np.array([0.4, 0.5, 0.5, 0.45, 0.35, 0.2, 0.1])
    return np.where(chosen & (rng.random() < 0.2), depth, 0)


def _slip(rng: np.random.Generator, canal: np.ndarray, degeneration: np.ndarray, male: bool) -> np.ndarray:
    """Degenerative slip, mostly forward at L4/5 and in women; a slipped level is usually a narrow one."""
    rate = np.array([0.005, 0.01, 0.03, 0.10, 0.06]) * (0.7 if male else 1.3)
    chance = rate * np.exp(0.8 * np.clip(canal, -2, 2)) * (0.4 + 1.2 * degeneration)
    slipped = rng.random(N_LEVELS) < chance
    backward = rng.random(N_LEVELS) < np.array([0.6, 0.6, 0.4, 0.05, 0.25])
    size = np.clip(2.5 + rng.gamma(2.0, 1.3, N_LEVELS), 2.5, 11)
    return np.where(slipped, np.where(backward, -0.5 * size, size), 0.3 * rng.standard_normal(N_LEVELS))
