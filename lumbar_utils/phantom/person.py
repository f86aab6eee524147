"""One person: every number that shapes a body; `disease` samples people as in a population, `randomisation` beyond."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from ..labels import MIRROR_PERMUTATION, N_LEVELS

VERTEBRAE = (
    *("T7", "T8", "T9", "T10", "T11", "T12"),
    *("L1", "L2", "L3", "L4", "L5"),
    *("S1", "S2", "S3", "S4", "S5", "Co"),
)
L1, L5, S1 = VERTEBRAE.index("L1"), VERTEBRAE.index("L5"), VERTEBRAE.index("S1")
N_VERTEBRAE = len(VERTEBRAE)


_per_level = partial(np.zeros, N_LEVELS)


@dataclass(frozen=True)
class Person:
    """Everything about one person that shapes the body. Arrays are over the levels, L1/L2 first, if not said otherwise.

    Whatever the body draws from `seed` and has a side must be mirrored too where the person is `flipped`.
    """

    person_id: int  # index in the cohort
    seed: int  # for whatever the body draws itself: texture, bowel, vessels
    degrees: np.ndarray  # (25,) of `labels.TARGETS`: stenosis 0..3, below 1 normal or mild, 1..2 moderate, 2..3 severe
    degeneration: np.ndarray  # loss of disc signal and height, 0 (young) to 1 (black and collapsed)
    bulge_mm: np.ndarray  # diffuse disc bulge beyond the end-plates
    modic: np.ndarray  # int: type of end-plate change, 0 (none) to 3
    listhesis_mm: np.ndarray  # forward slip of the level's upper vertebra; negative is backward
    haemangioma: int  # vertebra with a haemangioma, 0 = L1 to 4 = L5, or -1
    age: float  # years
    male: bool
    stature: float  # scale of all lengths, about 1
    lordosis_degrees: float  # L1 to S1
    sacral_slope_degrees: float  # S1 end-plate to the horizontal
    scoliosis_degrees: float  # Cobb-like; positive: convex to the patient's left
    sac_scale: float  # width of the dural sac and bony canal, relative to what goes with the stature
    fat_mm: float  # subcutaneous fat behind L3
    sacral_disc: float  # how much of a disc is left between S1 and S2, 0 (a line) to 1 (nearly a lumbar disc)
    transition: float = 0.0  # -1..1: negative is a sacralised L5, positive a lumbarised S1; names go by count
    sacral_kyphosis_degrees: float = 52.0  # sum of the wedges from S1 to S5
    sacral_heights: np.ndarray = field(default_factory=partial(np.ones, 2))  # of S1 and S2, relative to the stature
    body_wedge_degrees: np.ndarray = field(default_factory=_per_level)  # added to the wedges of L1..L5; higher in front
    disc_wedge_degrees: np.ndarray = field(default_factory=_per_level)  # and of L1/L2..L5/S1
    short_back_mm: float = 0.0  # how much shorter the back wall of a trapezoid L5 is than its wedge makes it
    dome_mm: float = 0.0  # rounding of the upper end-plate of S1, as it goes with a dysplastic slip
    counter_curve: float = 0.0  # second bow of a scoliosis, relative to the first, negative to the other side
    rotation_degrees: float = 0.0  # axial rotation of the vertebrae at the apex of a scoliosis
    height_spread: float = 0.025  # relative standard deviation of single bodies' heights
    disc_spread: float = 0.06  # and of discs'
    conus_shift_mm: float = 0.0  # how much lower than usual the cord ends
    girth_mm: float = 0.0  # added to the depth and, by half, to the width of the belly
    # T11..L5: share of the height lost in front (a wedge) and in the middle (biconcave)
    fracture: np.ndarray = field(default_factory=partial(np.zeros, (7, 2)))
    # Discs T11/T12..L5/S1: depth of a Schmorl's node in the end-plate above (positive) or below (negative)
    schmorl_mm: np.ndarray = field(default_factory=partial(np.zeros, 7))
    # T11..S1: focal marrow disease, 0 (none) to 1 (replaced), negative where it is sclerotic
    marrow: np.ndarray = field(default_factory=partial(np.zeros, 8))
    fused: int = -1  # level of a block vertebra with a rudimentary disc, or -1
    herniation_mm: np.ndarray = field(default_factory=_per_level)  # how far a focal herniation reaches backward
    herniation_at_mm: np.ndarray = field(default_factory=_per_level)  # and where across; positive: left
    epidural_fat: float = 0.0  # lipomatosis, 0 (none) to 1
    # Vertebrae L1..L5 without lamina and spinous process
    laminectomy: np.ndarray = field(default_factory=partial(np.zeros, N_LEVELS, dtype=bool))
    wound: int = 0  # what lies there instead: 0 scar, 1 fat, 2 fluid
    vessel_scale: float = 1.0  # calibre of aorta and cava
    pelvic_mass_mm: float = 0.0  # radius of a uterus-, prostate- or tumour-like mass, 0 for none
    ascites: float = 0.0  # share of the belly's fat that is fluid instead
    flipped: bool = False  # left and right have changed places against the body that `seed` draws

    def mirrored(self) -> Person:
        """The same person in a mirror: left and right targets and the sign of the scoliosis change."""
        return replace(
            self,
            degrees=self.degrees[MIRROR_PERMUTATION],
            scoliosis_degrees=-self.scoliosis_degrees,
            rotation_degrees=-self.rotation_degrees,
            herniation_at_mm=-self.herniation_at_mm,
            flipped=not self.flipped,
        )
