"""The lumbosacral junction: how sacral a vertebra is, what is left of the discs between sacral bodies.

A vertebra between the last rib and the sacrum can be anything between lumbar and sacral (Castellvi 1984; on sagittal
MRI the shape of the transitional body and the height of its discs tell, O'Driscoll 1996). `Person.transition` moves
the tables of L5 or S1 toward those of the neighbour.
"""

from __future__ import annotations

import numpy as np

from .person import N_VERTEBRAE, S1, Person

_KYPHOSIS_SHARE = np.array([0.02, 0.08, 0.17, 0.10, 0.22, 0.09, 0.16, 0.05, 0.11])
"""S1, S1/2, S2 .. S5: where the sacrum bends. S1 is nearly square from the side; the bend is greatest at S3."""

_SACRALISED = (
    # table, vertebra, goal in mm at stature 1, share of the way there
    ("top", S1, 24, 1.0),
    ("bottom", S1 - 1, 25, 1.0),
    ("bottom", S1, 18, 1.0),
    ("width top", S1, 42, 1.0),
    ("width bottom", S1 - 1, 44, 1.0),
    ("disc", S1 - 1, 2.0, 0.9),
)
_LUMBARISED = (
    ("top", S1 + 1, 32, 1.0),
    ("bottom", S1, 33, 1.0),
    ("bottom", S1 + 1, 21, 1.0),
    ("width top", S1 + 1, 48, 1.0),
    ("width bottom", S1, 48, 1.0),
    ("height", S1 + 1, 26, 1.0),
    ("disc", S1, 10.5, 1.0),
)


def reshape_transitional_vertebra(person: Person, tables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Copies of the tables (`profiles.SIZES`) with a transitional vertebra moved toward its neighbour's kind."""
    tables = {name: values.copy() for name, values in tables.items()}
    for name, vertebra, goal, share in _SACRALISED if person.transition < 0 else _LUMBARISED:
        tables[name][vertebra] += share * abs(person.transition) * (goal - tables[name][vertebra])
    return tables


def sample_remnants(person: Person, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is left of each disc: the share of its depth, where (0 behind, 1 in front), darkness of the line that joins.

    Lumbar discs are whole, but for a block vertebra's and a sacralised L5's; sacral ones are thin or gone.
    O'Driscoll's types of S1/2 go by `person.sacral_disc`: none, a small one, one of full depth.
    """
    n = N_VERTEBRAE - 1
    extent, position, scar = np.ones(n), np.full(n, 0.5), np.zeros(n)
    first = np.clip(1.5 * person.sacral_disc + 0.55 + 0.25 * rng.standard_normal(), 0, 1.4)
    first *= person.sacral_disc > 0.04
    further = first * np.cumprod(rng.uniform(0.5, 1.15, n - S1 - 1))
    extent[S1:] = np.concatenate([[first], np.where(rng.random(n - S1 - 1) < 0.2, 0, further)])
    position[S1:] = 0.5 + (0.5 - np.clip(extent[S1:], 0, 1) / 2) * rng.uniform(-1, 1, n - S1)
    scar[S1:] = rng.uniform(0.2, 1, n - S1) * rng.random()
    extent[S1] = np.maximum(extent[S1], 2 * max(person.transition, 0))
    extent[S1 - 1] -= 0.7 * max(-person.transition - 0.25, 0)
    if person.fused >= 0:
        block = S1 - 5 + person.fused
        extent[block], position[block] = rng.uniform(0.15, 0.5), rng.uniform(0.35, 0.65)
        scar[block] = rng.uniform(0, 0.6)
    return np.clip(extent, 0, 1).astype(np.float32), position.astype(np.float32), scar.astype(np.float32)


def bend_sacrum(body: np.ndarray, disc: np.ndarray, person: Person, rng: np.random.Generator) -> None:
    """Fill in the wedges (degrees, lordosis positive) from S1 down, coccyx included, and those of a transition."""
    share = _KYPHOSIS_SHARE * rng.uniform(0.5, 1.5, len(_KYPHOSIS_SHARE))
    wedge = -person.sacral_kyphosis_degrees * share / share.sum()
    body[S1 : S1 + 5], disc[S1 : S1 + 4] = wedge[0::2], wedge[1::2]
    body[S1] += rng.uniform(0, 6)  # higher in front: the promontory
    body[S1 + 5 :], disc[S1 + 4 :] = -rng.uniform(5, 40), -rng.uniform(0, 25)
    amount = abs(person.transition)
    if person.transition < 0:
        lost = 0.75 * amount * disc[S1 - 1]
        disc[S1 - 1] -= lost
        disc[S1 - 2] += 0.6 * lost
        body[S1 - 2] += 0.4 * lost
        body[S1 - 1] *= 1 - 0.6 * amount
    else:
        disc[S1 - 1] -= 0.45 * amount * disc[S1 - 1]
        body[S1] += 6 * amount
        disc[S1] += 12 * amount
