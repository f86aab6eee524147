"""Crops straight from phantoms: what they show, and that a second call takes what is there."""

from dataclasses import replace

import numpy as np
import pytest

from lumbar_utils.crops.extraction import CropSpec, extract_crops
from lumbar_utils.crops.synthetic_crops import around_canal, scan_person, synthetic_crops
from lumbar_utils.dicom.series import Series, Stack
from lumbar_utils.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2, VIEWS, encode_severities
from lumbar_utils.localization import DiscPoints
from lumbar_utils.phantom.anatomy import Body
from lumbar_utils.phantom.disease import sample_person
from lumbar_utils.phantom.protocol import sample_protocols
from lumbar_utils.phantom.reader_model import label_person
from lumbar_utils.phantom.scanner import acquire
from lumbar_utils.studies.data import Study

SPEC = CropSpec.of_size(32)


@pytest.fixture(scope="module")
def body():
    return Body(sample_person(4, 1))


def crops_of(body, protocol):
    rng = np.random.default_rng(0)
    stacks = tuple(
        Stack(pixels.astype(np.float32), geometry, tuple(range(len(geometry))), ())
        for geometry, pixels in acquire(body, protocol, rng)
    )
    study = Study("s", (Series("s", "1", protocol.view, stacks),))
    return extract_crops(study, DiscPoints("s", "", body.truth.canal, np.ones(5)), SPEC)


@pytest.mark.parametrize("view", [SAGITTAL_T2, SAGITTAL_T1, AXIAL_T2])
def test_a_narrow_scan_shows_in_the_crops_what_a_whole_one_shows(body, view):
    protocol = sample_protocols(body, np.random.default_rng(2), "demo", views=(view,))[0]
    protocol = replace(protocol, noise=0.0, ghost=0.0)
    narrow = around_canal(protocol, body.truth.canal)
    assert np.prod(narrow.acquisition_matrix) < 0.7 * np.prod(protocol.acquisition_matrix)
    whole, part = crops_of(body, protocol), crops_of(body, narrow)
    covered = whole.covered[view]
    assert covered.any() and np.array_equal(covered, part.covered[view])
    difference = np.abs(whole.images[view].astype(float) - part.images[view].astype(float))[covered]
    assert np.median(difference) < 0.02 and np.quantile(difference, 0.95) < 0.12


def test_a_scan_holds_the_boxes_of_all_views(body):
    study, points = scan_person(body, np.random.default_rng(3))
    crops = extract_crops(study, points, SPEC)
    assert not crops.issues
    assert all(crops.covered[view][:, SPEC.shapes[view][0] // 2].all() for view in VIEWS), "in plane nothing is cut off"
    assert np.abs(points.points - body.truth.canal).max() < 8


def test_a_cache_is_the_same_again_and_has_the_readers_labels(tmp_path):
    cache, labels = synthetic_crops(range(3, 5), 7, tmp_path, SPEC, n_jobs=1, progress=False)
    assert cache.study_ids == ("synthetic-7-3", "synthetic-7-4") == tuple(labels["study_id"])
    expected = [label_person(sample_person(i, 7, randomise=i % 2 == 1).degrees, i, 7) for i in (3, 4)]
    assert np.array_equal(encode_severities(labels), expected)
    first = cache["synthetic-7-3"]
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    again, _ = synthetic_crops(range(3, 5), 7, tmp_path, SPEC, n_jobs=1, progress=False)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")} == stamps, "nothing is made twice"
    assert np.array_equal(first.images[AXIAL_T2], again["synthetic-7-3"].images[AXIAL_T2])
