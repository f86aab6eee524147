"""The crop cache on a synthetic cohort: complete, resumable, and not stopped by one broken study."""

import json
import shutil

import numpy as np
import pytest

from lumbar_utils.crops.cache import MANIFEST, CropCache, build_crop_cache, crop_file
from lumbar_utils.crops.extraction import CropSpec, extract_crops
from lumbar_utils.errors import DataError, OutputError
from lumbar_utils.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2, VIEWS
from lumbar_utils.localization import DiscPoints
from lumbar_utils.localization.evaluation import read_reference
from lumbar_utils.studies.study import find_studies

SPEC = CropSpec(shapes={SAGITTAL_T2: (4, 20, 20), AXIAL_T2: (4, 20, 20), SAGITTAL_T1: (8, 20, 20)})


@pytest.fixture(scope="module")
def sources(cohort):
    return find_studies(cohort)[:3]


@pytest.fixture(scope="module")
def points(cohort):
    truth = read_reference(cohort / "truth" / "discs.csv", point="canal")
    return {s: DiscPoints(s, "", p, np.ones(5), source="truth") for s, p in truth.items()}


def build(sources, points, folder, **options):
    return build_crop_cache(sources, points, folder, spec=SPEC, n_jobs=1, progress=False, **options)


def test_every_study_comes_back_and_the_canal_is_bright_on_t2(sources, points, tmp_path):
    build(sources, points, tmp_path)
    cache = CropCache.open(tmp_path)
    assert cache.study_ids == tuple(s.study_id for s in sources) and not cache.failures
    assert cache.spec == SPEC
    for crops in cache:
        for view in set(VIEWS) - set(crops.missing):
            assert crops.images[view].shape == (5, *SPEC.shapes[view])
        if SAGITTAL_T2 not in crops.missing:
            # The canal point is the middle of the box; at L1/2 it lies in bright fluid or in the cord.
            canal = crops.images[SAGITTAL_T2][:, 1:3, 8:12, 9:11].astype(float).max(axis=(1, 2, 3))
            bone = np.median(crops.images[SAGITTAL_T2][:, 1:3, :, 3:7].astype(float), axis=(1, 2, 3))
            assert (canal > bone).all()


def test_a_second_run_does_only_what_is_missing_or_has_moved(sources, points, tmp_path):
    build(sources, points, tmp_path)
    times = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.npz")}
    first, second, _ = (s.study_id for s in sources)
    first_file, second_file, third_file = (crop_file(tmp_path, s.study_id, SPEC) for s in sources)
    first_file.unlink()
    moved = DiscPoints(second, "", points[second].points + 2.0, np.ones(5), source="truth")
    cache = build(sources, {**points, second: moved}, tmp_path)
    after = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.npz")}
    assert after[third_file.name] == times[third_file.name]
    assert after[second_file.name] != times[second_file.name]
    np.testing.assert_allclose(cache[second].centers, moved.points)
    assert first in cache and len(cache) == 3


def test_a_half_written_file_is_made_again(sources, points, tmp_path):
    build(sources[:1], points, tmp_path)
    path = crop_file(tmp_path, sources[0].study_id, SPEC)
    path.write_bytes(path.read_bytes()[:1000])
    assert build(sources[:1], points, tmp_path)[sources[0].study_id].study_id == sources[0].study_id


def test_a_broken_study_is_noted_and_the_rest_is_cropped(cohort, points, tmp_path):
    copy = tmp_path / "cohort"
    shutil.copytree(cohort, copy)
    sources = find_studies(copy)[:3]
    for path in (copy / "train_images" / sources[1].study_id).rglob("*.dcm"):
        path.write_text("not an image")
    without_points = {s: p for s, p in points.items() if s != sources[2].study_id}
    cache = build(sources, without_points, tmp_path / "crops")
    assert cache.study_ids == (sources[0].study_id,)
    assert cache.failures[sources[2].study_id] == "no disc points"
    assert sources[1].study_id in cache.failures[sources[1].study_id]
    assert json.loads((tmp_path / "crops" / MANIFEST).read_text())["failures"] == cache.failures


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_a_full_disk_ends_the_run_and_spares_a_cache_of_another_size(sources, points, tmp_path, full_disk, whole):
    """At the first file, at another one, and at the manifest."""
    good = build(sources[:2], points, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = CropSpec(shapes={**SPEC.shapes, AXIAL_T2: (4, 24, 24)})
    with full_disk(whole), pytest.raises(OutputError, match=rf"{tmp_path.name}/.*No space left"):
        build_crop_cache(sources[:2], points, tmp_path, spec=other, n_jobs=1, progress=False)
    kept = CropCache.open(tmp_path)
    assert (kept.spec, kept.study_ids) == (SPEC, good.study_ids) and all(crops.spec == SPEC for crops in kept)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    larger = build_crop_cache(sources[:2], points, tmp_path, spec=other, n_jobs=1, progress=False)
    assert [crops.spec for crops in larger] == [other, other]


def test_a_file_that_holds_something_else_is_named_with_its_study(sources, points, tmp_path):
    cache = build(sources[:2], points, tmp_path)
    first, second = (crop_file(tmp_path, study_id, SPEC) for study_id in cache.study_ids)
    shutil.copyfile(first, second)
    with pytest.raises(DataError, match=rf"study {cache.study_ids[1]}: .*{second.name} holds crops of study"):
        cache[cache.study_ids[1]]
    second.write_bytes(b"PK")
    for read in (cache.__getitem__, lambda study_id: cache.digest([study_id])):
        with pytest.raises(DataError, match=rf"study {cache.study_ids[1]}: .*{second.name}"):
            read(cache.study_ids[1])


def test_an_error_that_nobody_foresaw_costs_one_study(sources, points, tmp_path, monkeypatch):
    def odd(study, discs, spec):
        if study.study_id == sources[0].study_id:
            raise IndexError("odd")
        return extract_crops(study, discs, spec)

    monkeypatch.setattr("lumbar_utils.crops.cache.extract_crops", odd)
    cache = build(sources[:2], points, tmp_path)
    assert cache.study_ids == (sources[1].study_id,)
    assert cache.failures == {sources[0].study_id: "odd"}


def test_a_folder_without_a_cache_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="lumbar crops"):
        CropCache.open(tmp_path)
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(DataError, match="not a manifest"):
        CropCache.open(tmp_path)
