"""The lumbosacral junction: how sacral a vertebra is, what is left of the discs between sacral bodies.

A vertebra between the last rib and the sacrum can be anything between lumbar and sacral (Castellvi 1984; on sagittal
MRI the shape of the transitional body and the height of its discs tell, O'Driscoll 1996). `Person.transition` moves
the tables of L5 or S1 toward those of the neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .person import Person

_KYPHOSIS_SHARE = np.array([0.02, 0.08, 0.17, 0.10, 0.22, 0.09, 0.16, 0.05, 0.11])
"""S1, S1/2, S2 .. S5: where the sacrum bends. S1 is nearly square from the side; the bend is greatest at S3."""


@dataclass(frozen=True)
class Remnants:
    """What is left of each disc: 1 the whole, 0 the bodies have grown together; arrays over the discs.

    Parameters
    ----------
    extent : ndarray
        Share of the depth that the disc takes up.
    position : ndarray
        Middle of that part, 0 behind to 1 in front.
    scar : ndarray
        Darkness of the line where the bodies have met, 0..1.
    """

    extent: np.ndarray
    position: np.ndarray
    scar: np.ndarray


def sample_remnants(person: Person, s1: int, n_discs: int, rng: np.random.Generator) -> Remnants:
    """Lumbar discs are whole, but for a block vertebra's and a sacralised L5's; sacral ones are thin or gone.

    O'Driscoll's types of S1/2 go by `person.sacral_disc`: none, a small one, one of full depth.
    """
    n_sacral = n_discs - s1
    extent, position, scar = np.ones(n_discs), np.full(n_discs, 0.5), np.zeros(n_discs)
    first = np.clip(1.5 * person.sacral_disc + 0.55 + 0.25 * rng.standard_normal(), 0, 1.4)
    first *= person.sacral_disc > 0.04
    further = first * np.cumprod(rng.uniform(0.5, 1.15, n_sacral - 1))
    extent[s1:] = np.concatenate([[first], np.where(rng.random(n_sacral - 1) < 0.2, 0, further)])
    position[s1:] = 0.5 + (0.5 - np.clip(extent[s1:], 0, 1) / 2) * rng.uniform(-1, 1, n_sacral)
    scar[s1:] = rng.uniform(0.2, 1, n_sacral) * rng.random()
    extent[s1] = np.maximum(extent[s1], 2 * max(person.transition, 0))
    extent[s1 - 1] -= 0.7 * max(-person.transition - 0.25, 0)
    if person.fused >= 0:
        block = s1 - 5 + person.fused
        extent[block], position[block] = rng.uniform(0.15, 0.5), rng.uniform(0.35, 0.65)
        scar[block] = rng.uniform(0, 0.6)
    return Remnants(np.clip(extent, 0, 1), position, scar)


def bend_sacrum(body: np.ndarray, disc: np.ndarray, person: Person, s1: int, rng: np.random.Generator) -> None:
    """Fill in the wedges (degrees, lordosis positive) from S1 down, coccyx included, and those of a transition."""
    share = _KYPHOSIS_SHARE * rng.uniform(0.5, 1.5, len(_KYPHOSIS_SHARE))
    wedge = -person.sacral_kyphosis_degrees * share / share.sum()
    body[s1 : s1 + 5], disc[s1 : s1 + 4] = wedge[0::2], wedge[1::2]
    body[s1] += rng.uniform(0, 6)  # higher in front: the promontory
    body[s1 + 5 :], disc[s1 + 4 :] = -rng.uniform(5, 40), -rng.uniform(0, 25)
    lumbarised, sacralised = max(person.transition, 0.0), max(-person.transition, 0.0)
    if sacralised:
        lost = 0.75 * sacralised * disc[s1 - 1]
        disc[s1 - 1] -= lost
        disc[s1 - 2] += 0.6 * lost
        body[s1 - 2] += 0.4 * lost
        body[s1 - 1] *= 1 - 0.6 * sacralised
    if lumbarised:
        lost = 0.45 * lumbarised * disc[s1 - 1]
        disc[s1 - 1] -= lost
        body[s1] += 6 * lumbarised
        disc[s1] += 12 * lumbarised


def reshape_transitional_vertebra(person: Person, tables: dict[str, np.ndarray], s1: int) -> None:
    """Move the outlines of a transitional vertebra (mm at stature 1, changed in place) toward its neighbour's kind.

    `tables` holds "top" and "bottom" (depths), "width top" and "width bottom" over the vertebrae, "height", and
    "disc" over the discs.
    """
    lumbarised, sacralised = max(person.transition, 0.0), max(-person.transition, 0.0)

    def toward(name: str, vertebra: int, goal: float, share: float) -> None:
        tables[name][vertebra] += share * (goal - tables[name][vertebra])

    if sacralised:
        toward("bottom", s1 - 1, 25, sacralised)
        toward("top", s1, 24, sacralised)
        toward("bottom", s1, 18, sacralised)
        toward("width bottom", s1 - 1, 44, sacralised)
        toward("width top", s1, 42, sacralised)
        toward("disc", s1 - 1, 2.0, 0.9 * sacralised)
    if lumbarised:
        toward("bottom", s1, 33, lumbarised)
        toward("top", s1 + 1, 32, lumbarised)
        toward("bottom", s1 + 1, 21, lumbarised)
        toward("width bottom", s1, 48, lumbarised)
        toward("width top", s1 + 1, 48, lumbarised)
        toward("height", s1 + 1, 26, lumbarised)
        toward("disc", s1, 10.5, lumbarised)
