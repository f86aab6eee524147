"""What real collections have and clean simulations lack, at the rates of the competition's public tables.

Three kinds: which series a study has, how their slices are numbered, and which labels are missing. (The
annotation errors among the points are in `annotator`.) A cohort of a hundred studies will hold only a few of the
rare ones, as a hundred real studies would.

Rates: counted in the competition's tables (1,975 studies, 6,294 series, 49,375 labels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..geometry import LEFT, StackGeometry
from ..labels import AXIAL_T2, N_CONDITIONS, N_LEVELS, SAGITTAL_T1, SAGITTAL_T2

N_AXIAL_RATES = (0.8305, 0.155, 0.014, 0.0005)
TWO_T1_RATE, NO_T1_RATE, NO_T2_RATE = 7 / 1975, 2 / 1975, 1 / 1975
RIGHT_TO_LEFT_RATE = 0.64
"""Sagittal series whose slices run from the patient's right to the left with rising instance number."""
DOWNWARD_RATE = 0.88
MIXED_RATE = 0.07
"""Of axial series with several blocks: rising numbers go through the blocks one way, within a block the other. Half
of the axial series have several blocks, which makes 3.5 % of all."""
LATE_START_RATE, GAP_RATE = 0.05, 0.05
RLE_RATE = 0.01

INCOMPLETE_RATE = 185 / 1975  # studies with any label missing
MISSING_LABEL_RATE = np.array(
    [
        [0.005, 0.005, 0.005, 0.005, 0.015],
        [0.010, 0.010, 0.010, 0.010, 0.025],
        [0.010, 0.010, 0.010, 0.010, 0.025],
        [0.870, 0.430, 0.060, 0.030, 0.040],
        [0.870, 0.430, 0.060, 0.030, 0.040],
    ]
)
"""Chance of a missing label in such a study, conditions x levels."""

_DESCRIPTIONS = {
    SAGITTAL_T1: ("SAG T1", "T1 TSE SAG", "Sag T1 FSE", "T1W_TSE_SAG", "SAG T1 LSPINE"),
    SAGITTAL_T2: ("SAG T2", "T2 TSE SAG", "Sag T2 FSE", "T2W_TSE_SAG", "SAG T2 LSPINE"),
    AXIAL_T2: ("AX T2", "T2 TSE TRA", "Ax T2 FSE", "T2W_TSE_AX", "AX T2 LSPINE"),
}
_STIR_DESCRIPTIONS = ("SAG STIR", "STIR SAG", "Sag STIR FSE", "STIR_longTE_SAG", "SAG STIR LSPINE")


@dataclass(frozen=True)
class SeriesPlan:
    """How one series is to be stored."""

    view: str  # one of `labels.VIEWS`
    forward: bool = True  # rising instance numbers go from the patient's right to the left (sagittal), downward (axial)
    mixed: bool = False  # with several blocks: the numbers within each block run against the order of the blocks
    first_number: int = 1
    skipped: tuple[int, ...] = ()  # positions (0-based, along the numbering) before which a number is left out
    transfer_syntax: str = "explicit"  # a key of `writer.TRANSFER_SYNTAXES`


@dataclass(frozen=True)
class StudyPlan:
    """A study's series, in the order in which they are acquired, and the labels that are missing."""

    series: tuple[SeriesPlan, ...]
    unlabelled: np.ndarray  # bool (25,): targets without a label
    axial_top_level: int  # first level that the axial series reach; the subarticular labels above it are missing
    naming_scheme: int  # which of the ways to name a series this study's scanner uses: an index into the tuples above

    @property
    def views(self) -> tuple[str, ...]:
        """View of every series."""
        return tuple(item.view for item in self.series)

    def description(self, view: str, *, inversion: bool = False) -> str:
        """The scanner's name for a series."""
        return (_STIR_DESCRIPTIONS if inversion else _DESCRIPTIONS[view])[self.naming_scheme]


def sample_study_plan(rng: np.random.Generator) -> StudyPlan:
    """Sample a study's series and missing labels."""
    n_axial = 1 + int(rng.choice(len(N_AXIAL_RATES), p=N_AXIAL_RATES))
    absent, doubled = rng.random(2)
    n_t1 = 0 if absent < NO_T1_RATE else 2 if doubled < TWO_T1_RATE else 1
    n_t2 = 0 if NO_T1_RATE <= absent < NO_T1_RATE + NO_T2_RATE else 1
    views = [SAGITTAL_T1] * n_t1 + [SAGITTAL_T2] * n_t2 + [AXIAL_T2] * n_axial
    forward_sagittal = bool(rng.random() < RIGHT_TO_LEFT_RATE)
    series = tuple(_sample_series_plan(view, forward_sagittal, rng) for view in views)
    unlabelled = _sample_missing_labels(rng)
    both_sides = unlabelled[3] & unlabelled[4]
    top = 0 if not both_sides[0] else 1 if not both_sides[1] else 2
    return StudyPlan(series, unlabelled.ravel(), top, int(rng.integers(len(_STIR_DESCRIPTIONS))))


def _sample_series_plan(view: str, forward_sagittal: bool, rng: np.random.Generator) -> SeriesPlan:
    downward, mixed, late, gaps, packed = rng.random(5)
    return SeriesPlan(
        view=view,
        # The sagittal series of a study are planned together and mostly run the same way.
        forward=bool(downward < DOWNWARD_RATE) if view == AXIAL_T2 else forward_sagittal,
        mixed=bool(view == AXIAL_T2 and mixed < MIXED_RATE),
        first_number=int(rng.integers(2, 40)) if late < LATE_START_RATE else 1,
        skipped=tuple(sorted(map(int, rng.choice(12, rng.integers(1, 4), replace=False)))) if gaps < GAP_RATE else (),
        transfer_syntax="rle" if packed < RLE_RATE else "explicit",
    )


def _sample_missing_labels(rng: np.random.Generator) -> np.ndarray:
    """Missing labels (5, 5). The subarticular ones go by level, both sides at once, from the top."""
    incomplete = rng.random() < INCOMPLETE_RATE
    single = rng.random((N_CONDITIONS, N_LEVELS)) < MISSING_LABEL_RATE
    # One draw for both sides and all levels: a lower level is unlabelled only where the one above is.
    out_of_reach = rng.random() < MISSING_LABEL_RATE[3, :2]
    single[3:, :2] = out_of_reach
    return single & incomplete


def number_slices(stacks: Sequence[StackGeometry], plan: SeriesPlan) -> list[np.ndarray]:
    """Instance numbers of every slice, one int array per stack in the order of the stack's positions."""
    axial = plan.view == AXIAL_T2
    along = np.array([0.0, 0.0, -1.0]) if axial else LEFT
    sign = 1 if plan.forward else -1
    order: list[tuple[int, int]] = []
    for k in sorted(range(len(stacks)), key=lambda i: sign * float(stacks[i].center @ along)):
        with_normal = stacks[k].normal @ along > 0
        within = sign * (-1 if plan.mixed and len(stacks) > 1 else 1)
        slices = range(len(stacks[k]))
        order += [(k, i) for i in (slices if with_normal == (within > 0) else reversed(slices))]
    numbers = [np.zeros(len(stack), dtype=int) for stack in stacks]
    number = plan.first_number
    for position, (k, i) in enumerate(order):
        number += position in plan.skipped and position > 0
        numbers[k][i] = number
        number += 1
    return numbers
