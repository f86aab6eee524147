"""The adaptor for single slices of real patients, tried on phantoms: the same crops come back, left as left."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from lumbar_utils.crops.extraction import CropSpec, extract_crops
from lumbar_utils.dicom.series import Series, Stack
from lumbar_utils.labels import AXIAL_T2, LEVELS, MISSING, N_LEVELS, SAGITTAL_T1
from lumbar_utils.localization import DiscPoints
from lumbar_utils.phantom.anatomy import Body
from lumbar_utils.phantom.disease import sample_person
from lumbar_utils.phantom.protocol import Block, sample_protocols
from lumbar_utils.phantom.scanner import acquire
from lumbar_utils.studies.data import Study

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import real_patients

SPEC = CropSpec.of_size(48)
ROWS = 240


@pytest.fixture(scope="module")
def body() -> Body:
    """Somebody with a straight spine whose sides differ: the left foramina and recesses are severely narrowed."""
    degrees = np.zeros((5, N_LEVELS))
    degrees[[1, 3]] = 2.7
    return Body(replace(sample_person(3, 77), degrees=degrees.ravel(), scoliosis_degrees=0.0))


def scan(body: Body, view: str, centre, row, column, n_slices: int, field_mm: float) -> Stack:
    """One block of slices of 4.4 mm, square, `ROWS` pixels."""
    rng = np.random.default_rng(0)
    protocol = sample_protocols(body, rng, "demo", views=(view,))[0]
    block = Block(
        np.asarray(centre, dtype=float), np.array(row), np.array(column), n_slices, real_patients.SLICE_STEP_MM
    )
    size = {
        "acquisition_matrix": (ROWS, ROWS),
        "reconstruction_matrix": (ROWS, ROWS),
        "border": (0.0,) * 4,
        "fold": 0.0,
    }
    protocol = replace(protocol, blocks=(block,), fov_mm=(field_mm, field_mm), noise=0.0, **size)
    ((geometry, pixels),) = acquire(body, protocol, rng)
    return Stack(pixels.astype(np.float32), geometry, tuple(range(1, n_slices + 1)), ())


def crops_of(view: str, stacks, points) -> np.ndarray:
    study = Study("p", (Series("p", "1", view, tuple(stacks)),))
    crops = extract_crops(study, DiscPoints("p", "1", points, np.ones(N_LEVELS)), SPEC)
    return np.where(crops.covered[view], crops.images[view].astype(np.float32), np.nan)


def alike(one: np.ndarray, other: np.ndarray) -> float:
    both = np.isfinite(one) & np.isfinite(other)
    return float(np.corrcoef(one[both], other[both])[0, 1])


def test_axial_crops_come_back_left_as_left(body):
    for level in range(N_LEVELS):
        points = np.array([[0, 0, 40.0 * (2 - i)] for i in range(N_LEVELS)]) + body.truth.canal[level]
        points += [0, 0, 40.0 * (level - 2)]  # this level where it is, the others out of view
        whole = scan(body, AXIAL_T2, body.truth.canal[level], (1.0, 0, 0), (0, 1.0, 0), 3, 190.0)
        window = whole.pixels[::-1, ROWS // 2 - 40 : ROWS // 2 + 40, ROWS // 2 - 60 : ROWS // 2 + 60]
        part = real_patients.axial_stack(window, 190.0 / ROWS, points[level])
        expected = crops_of(AXIAL_T2, [whole], points)[level]
        found = crops_of(AXIAL_T2, [part], points)[level]
        assert alike(found, expected) > 0.98 > alike(found, expected[..., ::-1]) + 0.02


@pytest.mark.parametrize("rising", [True, False])
def test_t1_slices_come_back_left_as_left(body, monkeypatch, rising):
    canal, foramen = body.truth.canal, body.truth.foramen
    centre = canal.mean(axis=0)
    stack = scan(body, SAGITTAL_T1, centre, (0, 1.0, 0), (0, 0, -1.0), 21, 260.0)
    # Whole slices are squeezed to a square, and their instance numbers run either way.
    small = functional.interpolate(torch.from_numpy(stack.pixels)[None], (250, 250), mode="bilinear")[0].numpy()
    numbers = np.arange(1, 22) if rising else np.arange(21, 0, -1)
    marks, used = {}, set()
    for side in (0, 1):
        voxels = stack.geometry.world_to_voxel(foramen[:, side])
        slices = np.clip(np.rint(voxels[:, 0]).astype(int), 0, 20)
        used |= set(slices)
        table = pd.DataFrame({"x": voxels[:, 2], "y": voxels[:, 1]}) * (250 / ROWS)
        marks[side] = table.assign(rows=ROWS, columns=ROWS, instance_number=numbers[slices])
    between = foramen.mean(axis=1)
    chain = np.mean([np.linalg.norm(np.diff(foramen[:, side, 1:], axis=0), axis=1).sum() for side in (0, 1)])
    monkeypatch.setattr(real_patients, "FORAMINA_MM", float(chain))
    monkeypatch.setattr(real_patients, "CANAL_FROM_FORAMEN_MM", (canal - between)[:, 1:] * [1, -1])
    pictures = {int(numbers[k]): small[k] for k in sorted(used)}
    study, points = real_patients.t1_study("p", pictures, marks[0], marks[1])
    found = crops_of(SAGITTAL_T1, study.series[0].stacks, points.points)
    expected = crops_of(SAGITTAL_T1, [stack], canal)
    depth = SPEC.shapes[SAGITTAL_T1][0]
    for level in range(N_LEVELS):
        for side in (0, 1):  # at the slice of its foramen
            at = depth / 2 + (foramen[level, side, 0] - canal[level, 0]) / 90 * depth
            k = int(np.clip(at, 0, depth - 1))
            own, other = expected[level, k], expected[level, depth - 1 - k]
            assert alike(found[level, k], own) > max(0.8, alike(found[level, k], other)), (LEVELS[level], side)


def test_tables_of_a_folder_become_studies_with_their_grades(tmp_path):
    from PIL import Image

    (tmp_path / "axial").mkdir()
    grey = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    rows = []
    for name, level, grade in (("a", "L4/L5", "Severe"), ("b", "L4/L5", "Moderate"), ("c", "L5/S1", None)):
        Image.fromarray(grey).save(tmp_path / "axial" / f"{name}.webp", lossless=True)
        rows.append(("7", f"{name}.webp", level, 320, 300, grade, "Normal/Mild", "Moderate"))
    columns = ["study_id", "file", "level", "image_height", "image_width", *real_patients.TARGETS_OF[AXIAL_T2]]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "axial.csv", index=False)
    ((ids, crops, labels),) = [real_patients.collect(real_patients.axial_studies(tmp_path), SPEC)]
    assert ids == ["7"] and crops[0].missing == ("Sagittal T2/STIR", SAGITTAL_T1)
    assert crops[0].covered[AXIAL_T2].any(axis=(1, 2, 3)).tolist() == [False, False, False, True, True]
    grades = labels.reshape(5, N_LEVELS)
    assert grades[0].tolist() == [MISSING, MISSING, MISSING, 2, MISSING]  # of two crops of a level the first by name
    assert grades[3, 3:].tolist() == [0, 0] and grades[4, 3:].tolist() == [1, 1]
    predictions = np.tile([0.6, 0.3, 0.1], (1, 25, 1))
    table = real_patients.measure(labels, {"ours": predictions}, n=5)
    canal = table[(table["group"] == "spinal") & (table["measure"] == "log loss")]["value"].item()
    assert canal == pytest.approx(-np.log(0.1))
