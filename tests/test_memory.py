"""Memory stays flat: studies that have been done leave nothing behind. `benchmarks/memory.py` measures a thousand."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest

from lumbar_utils.crops.cache import build_crop_cache
from lumbar_utils.crops.extraction import CropSpec
from lumbar_utils.dicom.series import Stack
from lumbar_utils.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2
from lumbar_utils.localization import DiscLocalizer, DiscPoints, locate_studies
from lumbar_utils.localization.evaluation import read_reference
from lumbar_utils.phantom.cohort import generate_cohort
from lumbar_utils.studies.study import StudySource, find_studies, load_study

SPEC = CropSpec(shapes={SAGITTAL_T2: (4, 12, 12), AXIAL_T2: (4, 12, 12), SAGITTAL_T1: (8, 12, 12)})
WARM, STUDIES, FILES = 10, 50, 4


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[StudySource, DiscPoints]:
    """One study with few files, and its true discs."""
    root = tmp_path_factory.mktemp("one")
    generate_cohort(root, n_studies=1, seed=31, profile="demo", test_fraction=0.0, n_jobs=1, progress=False)
    (source,) = find_studies(root)
    points = read_reference(root / "truth" / "discs.csv", point="canal")[source.study_id]
    series_id = next(s.series_id for s in load_study(source).series if s.view == SAGITTAL_T2)
    files = tuple(sorted((source.path / series_id).absolute().glob("*.dcm")))[:FILES]
    source = StudySource(source.study_id, source.path.absolute(), ((series_id, files),))
    return source, DiscPoints(source.study_id, "", points, np.ones(5), source="truth")


def growth(work: Callable[[list[StudySource]], object], source: StudySource) -> float:
    """Bytes a study that are still held after many studies, first ones left out."""
    held = []

    def numbered(numbers: Iterable[int]) -> list[StudySource]:
        return [replace(source, study_id=f"{source.study_id}-{i}") for i in numbers]

    tracemalloc.start()
    try:
        for part in (range(WARM), range(WARM, WARM + STUDIES)):
            work(numbered(part))
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    return (held[1] - held[0]) / STUDIES


def image_bytes(source: StudySource) -> int:
    return sum(stack.pixels.nbytes for series in load_study(source).series for stack in series.stacks)


def test_cropping_keeps_nothing_of_a_study(study, tmp_path):
    source, points = study

    def crop(sources):
        known = {s.study_id: points for s in sources}
        assert len(build_crop_cache(sources, known, tmp_path, spec=SPEC, n_jobs=1, progress=False)) == len(sources)

    assert growth(crop, source) < 0.02 * image_bytes(source)


def test_locating_keeps_nothing_but_the_points(study, monkeypatch):
    source, points = study

    class Located(DiscLocalizer):
        """Reads the images, asks no network."""

        def __init__(self):
            self.files = None
            self.device = None

        def locate(self, item):
            assert item.series[0].stacks[0].pixels.max() > 0
            return replace(points, study_id=item.study_id)

    def locate(sources):
        assert len(locate_studies(sources, Located(), n_jobs=1, progress=False)[0]) == len(sources)

    assert growth(locate, source) < 0.02 * image_bytes(source)


def test_a_study_that_is_kept_would_be_seen(study):
    source, _ = study
    kept: list[Stack] = []

    def keep(sources):
        kept.extend(load_study(s).series[0].stacks[0] for s in sources[::10])

    assert growth(keep, source) > 0.05 * image_bytes(source), "one study of ten"
