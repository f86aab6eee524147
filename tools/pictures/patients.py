"""Synthetic patients as the pictures need them: chosen grades, clean scans."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from lumbar_utils.crops.extraction import CropSpec, StudyCrops, extract_crops
from lumbar_utils.dicom.series import Series, Stack
from lumbar_utils.labels import AXIAL_T2, N_TARGETS, SAGITTAL_T1, SAGITTAL_T2, VIEWS, target_index
from lumbar_utils.localization import DiscPoints
from lumbar_utils.phantom.anatomy import Body
from lumbar_utils.phantom.disease import sample_person
from lumbar_utils.phantom.protocol import Protocol, sample_protocols
from lumbar_utils.phantom.reader_model import class_probabilities
from lumbar_utils.phantom.scanner import acquire
from lumbar_utils.studies.data import Study

SEED = 11
FINE = CropSpec(shapes={SAGITTAL_T2: (8, 112, 112), AXIAL_T2: (8, 112, 112), SAGITTAL_T1: (24, 112, 112)})


def patient(**grades: float) -> Body:
    """A body whose degree of narrowing is 0.3 everywhere but where `grades` says, by target name."""
    degrees = np.full(N_TARGETS, 0.3)
    for target, degree in grades.items():
        condition, level = target.rsplit("_", 2)[0], "_".join(target.rsplit("_", 2)[1:])
        degrees[target_index(condition, level)] = degree
    person = sample_person(4, SEED)
    worn = np.array([0.1, 0.1, 0.2, 0.55, 0.45])
    person = replace(
        person,
        degrees=degrees,
        degeneration=worn,
        bulge_mm=np.array([0.3, 0.3, 0.5, 1.2, 0.8]),
        modic=np.zeros(5, dtype=int),
        listhesis_mm=np.zeros(5),
        haemangioma=-1,
        scoliosis_degrees=2.0,
        lordosis_degrees=48.0,
        sacral_slope_degrees=38.0,
        sac_scale=1.05,
        fat_mm=22.0,
        stature=1.0,
    )
    return Body(person)


def clean(protocol: Protocol, matrix: int) -> Protocol:
    """The same protocol without artefacts and with little noise, at a given matrix."""
    return replace(
        protocol,
        acquisition_matrix=(matrix, matrix),
        reconstruction_matrix=(round(matrix * 1.25), round(matrix * 1.25)),
        noise=0.012,
        ghost=0.0,
        bias=np.zeros(6),
        saturation_mm=float("inf"),
        coil_depth_mm=220.0,
        subslices=3,
    )


def series_of(body: Body, protocol: Protocol, series_id: str) -> Series:
    stacks = []
    for geometry, pixels in acquire(body, protocol, np.random.default_rng(SEED)):
        numbers = tuple(range(1, len(geometry) + 1))
        files = tuple(f"{n}.dcm" for n in numbers)
        stacks.append(Stack(pixels.astype(np.float32), geometry, numbers, files))
    return Series("phantom", series_id, protocol.view, tuple(stacks))


def protocols_of(body: Body, matrix: int = 320) -> dict[str, Protocol]:
    drawn = sample_protocols(body, np.random.default_rng(SEED), "rsna", views=VIEWS)
    return {protocol.view: clean(protocol, matrix) for protocol in drawn}


@cache
def example() -> tuple[Study, DiscPoints, StudyCrops, np.ndarray, np.ndarray]:
    """A study with narrowing at L3/L4 to L5/S1: its points, crops, labels, and probabilities of readers' grades."""
    grades = {
        "spinal_canal_stenosis_l4_l5": 2.5,
        "spinal_canal_stenosis_l3_l4": 1.5,
        "left_neural_foraminal_narrowing_l5_s1": 2.4,
        "right_neural_foraminal_narrowing_l4_l5": 1.5,
        "left_subarticular_stenosis_l4_l5": 2.6,
        "right_subarticular_stenosis_l4_l5": 2.5,
        "right_subarticular_stenosis_l3_l4": 1.6,
    }
    body = patient(**grades)
    labels = np.zeros(N_TARGETS, dtype=int)
    for target, degree in grades.items():
        condition, level = target.rsplit("_", 2)[0], "_".join(target.rsplit("_", 2)[1:])
        labels[target_index(condition, level)] = int(degree)
    series = tuple(series_of(body, p, str(i + 1)) for i, p in enumerate(protocols_of(body).values()))
    study = Study("phantom", series)
    discs = DiscPoints("phantom", "1", body.truth.canal, np.ones(5), source="truth")
    return study, discs, extract_crops(study, discs, FINE), labels, class_probabilities(body.person.degrees)
