"""One person: every number that shapes a body; `disease` samples people as in a population, `randomisation` beyond."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ..labels import MIRROR_PERMUTATION, N_LEVELS


@dataclass(frozen=True)
class Person:
    """Everything about one person that shapes the body.

    Parameters
    ----------
    person_id : int
        Index in the cohort.
    seed : int
        For whatever the body draws itself (texture, bowel, vessels).
    degrees : ndarray, shape (25,)
        Stenosis degree per target in `labels.TARGETS` order, in 0..3: below 1 normal or mild anatomy, 1..2 moderate,
        2..3 severe.
    degeneration : ndarray, shape (5,)
        Loss of disc signal and height per level, 0 (young) to 1 (black and collapsed).
    bulge_mm : ndarray, shape (5,)
        Diffuse disc bulge beyond the end-plates.
    modic : ndarray of int, shape (5,)
        Type of end-plate change, 0 (none) to 3.
    listhesis_mm : ndarray, shape (5,)
        Forward slip of the level's upper vertebra; negative is backward.
    haemangioma : int
        Vertebra with a haemangioma, 0 = L1 to 4 = L5, or -1.
    age : float
        Years.
    male : bool
    stature : float
        Scale of all lengths, about 1.
    lordosis_degrees, sacral_slope_degrees : float
        Angle L1 to S1 (positive: lordosis) and of the S1 end-plate to the horizontal.
    scoliosis_degrees : float
        Cobb-like angle; positive: convex to the patient's left.
    sac_scale : float
        Width of the dural sac and bony canal, relative to what goes with the stature.
    fat_mm : float
        Thickness of the subcutaneous fat behind L3.
    sacral_disc : float
        How much of a disc is left between S1 and S2, 0 (a line) to 1 (nearly a lumbar disc).
    transition : float
        Lumbosacral transition, -1..1: negative is a sacralised L5, positive a lumbarised S1. Names go by count.
    sacral_kyphosis_degrees : float
        Sum of the wedges from S1 to S5.
    height_spread, disc_spread : float
        Relative standard deviation of single bodies' and discs' heights.
    conus_shift_mm : float
        How much lower than usual the cord ends.
    girth_mm : float
        Added to the depth and, by half, to the width of the belly.
    fracture : ndarray, shape (7, 2)
        T11..L5: share of the front height lost to a wedge, and of the middle height lost to a biconcave collapse.
    schmorl_mm : ndarray, shape (7,)
        Discs T11/T12..L5/S1: depth of a node in the end-plate above (positive) or below (negative).
    marrow : ndarray, shape (8,)
        T11..S1: focal marrow disease, 0 (none) to 1 (replaced), negative where it is sclerotic.
    fused : int
        Level of a block vertebra with a rudimentary disc, or -1.
    herniation_mm, herniation_at_mm : ndarray, shape (5,)
        How far a focal herniation reaches backward, and where across (positive: left).
    epidural_fat : float
        Lipomatosis, 0 (none) to 1.
    laminectomy : ndarray of bool, shape (5,)
        Vertebrae L1..L5 without lamina and spinous process.
    wound : int
        What lies there instead: 0 scar, 1 fat, 2 fluid.
    vessel_scale : float
        Calibre of aorta and cava.
    pelvic_mass_mm : float
        Radius of a uterus-, prostate- or tumour-like mass, 0 for none.
    ascites : float
        Share of the belly's fat that is fluid instead.
    flipped : bool
        Left and right have changed places against the body that `seed` draws; whatever is drawn from `seed`
        and has a side must be mirrored too.
    """

    person_id: int
    seed: int
    degrees: np.ndarray
    degeneration: np.ndarray
    bulge_mm: np.ndarray
    modic: np.ndarray
    listhesis_mm: np.ndarray
    haemangioma: int
    age: float
    male: bool
    stature: float
    lordosis_degrees: float
    sacral_slope_degrees: float
    scoliosis_degrees: float
    sac_scale: float
    fat_mm: float
    sacral_disc: float
    transition: float = 0.0
    sacral_kyphosis_degrees: float = 52.0
    height_spread: float = 0.025
    disc_spread: float = 0.06
    conus_shift_mm: float = 0.0
    girth_mm: float = 0.0
    fracture: np.ndarray = field(default_factory=lambda: np.zeros((7, 2)))
    schmorl_mm: np.ndarray = field(default_factory=lambda: np.zeros(7))
    marrow: np.ndarray = field(default_factory=lambda: np.zeros(8))
    fused: int = -1
    herniation_mm: np.ndarray = field(default_factory=lambda: np.zeros(N_LEVELS))
    herniation_at_mm: np.ndarray = field(default_factory=lambda: np.zeros(N_LEVELS))
    epidural_fat: float = 0.0
    laminectomy: np.ndarray = field(default_factory=lambda: np.zeros(N_LEVELS, dtype=bool))
    wound: int = 0
    vessel_scale: float = 1.0
    pelvic_mass_mm: float = 0.0
    ascites: float = 0.0
    flipped: bool = False

    def mirrored(self) -> Person:
        """The same person in a mirror: left and right targets and the sign of the scoliosis change."""
        return replace(
            self,
            degrees=self.degrees[MIRROR_PERMUTATION],
            scoliosis_degrees=-self.scoliosis_degrees,
            herniation_at_mm=-self.herniation_at_mm,
            flipped=not self.flipped,
        )
