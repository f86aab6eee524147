"""Untrained networks on real crops, a localizer without a network, and studies broken in every way that we know."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import torch

from lumbar_utils.crops.extraction import CropSpec
from lumbar_utils.labels import AXIAL_T2, N_TARGETS, SAGITTAL_T1, SAGITTAL_T2
from lumbar_utils.localization import DiscPoints
from lumbar_utils.localization.preprocessing import LocalizationError
from lumbar_utils.models.classifier import ClassifierConfig, LumbarClassifier
from lumbar_utils.models.ensemble import Ensemble, Member
from lumbar_utils.models.run_folder import RunConfig, save_run

SPEC = CropSpec(shapes={SAGITTAL_T2: (8, 16, 16), AXIAL_T2: (8, 16, 16), SAGITTAL_T1: (16, 16, 16)})
LISTED = "test_series_descriptions.csv"


def write_run(folder: Path, seeds: tuple[int, ...] = (0,), weights: tuple[float, ...] = ()) -> Path:
    """A run with untrained networks whose answers depend on the images; several are an ensemble."""
    for seed in seeds:
        torch.manual_seed(seed)
        config = ClassifierConfig(encoder="test_resnet", family="2.5d", width=64, view_dropout=0.0)
        model = LumbarClassifier(config, np.full((N_TARGETS, 3), 1 / 3))
        for name, parameter in model.named_parameters():
            if "head" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        own = folder / f"fold_{seed}" if len(seeds) > 1 else folder
        save_run(own, model, RunConfig(config, SPEC, np.tile((0.7, 0.2, 0.1), (N_TARGETS, 1)), {}, True))
    if len(seeds) > 1:
        weights = weights or (1.0,) * len(seeds)
        Ensemble(tuple(Member(f"fold_{s}", w) for s, w in zip(seeds, weights, strict=True))).save(folder)
    return folder


class MiddleLocalizer:
    """Takes the middle of the widest sagittal stack for L3/L4, and 35 mm from disc to disc."""

    def locate(self, study):
        series = [*study.by_view(SAGITTAL_T2), *study.by_view(SAGITTAL_T1)]
        if not series:
            raise LocalizationError(f"study {study.study_id}: no sagittal series")
        geometry = series[0].stacks[0].geometry
        shape = np.array([len(geometry), *geometry.shape])
        points = geometry.voxel_to_world((shape - 1) / 2) + np.array([[0, 0, 35.0 * (2 - i)] for i in range(5)])
        return DiscPoints(study.study_id, series[0].series_id, points, np.ones(5), source="localizer")


def series_of(folder: Path, study: str, view: str) -> list[Path]:
    """The folders of a study's series of a view."""
    table = pd.read_csv(folder / LISTED, dtype=str)
    rows = table[(table["study_id"] == study) & (table["series_description"] == view)]
    return [folder / "test_images" / study / series for series in rows["series_id"]]


def edit(path: Path, **elements) -> None:
    """Set elements of a DICOM file; None removes one."""
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)


def _truncated(study: Path, series: Path) -> None:
    file = _first(series)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _unreadable(study: Path, series: Path) -> None:
    _first(series).write_bytes(os.urandom(2000))


def _wrong_length(study: Path, series: Path) -> None:
    dataset = pydicom.dcmread(_first(series))
    dataset.PixelData = dataset.PixelData[:100]
    dataset.save_as(_first(series))


def _no_position(study: Path, series: Path) -> None:
    for file in sorted(series.iterdir()):
        edit(file, ImagePositionPatient=None)


def _no_slices(study: Path, series: Path) -> None:
    for file in series.iterdir():
        file.unlink()


def _not_a_spine(study: Path, series: Path) -> None:
    rng = np.random.default_rng(0)
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        noise = rng.integers(0, 50, (dataset.Rows, dataset.Columns)).astype(np.uint16)
        dataset.PixelData = noise.tobytes()
        dataset.ImagePositionPatient = [float(v) + 5000 for v in dataset.ImagePositionPatient]
        dataset.save_as(file)


def _nan_spacing(study: Path, series: Path) -> None:
    for file in series.iterdir():
        # pydicom refuses to write it by name, so the bytes of a spacing that it does write are replaced.
        edit(file, PixelSpacing=["9.125", "9.125"])
        content = file.read_bytes()
        assert content.count(b"9.125\\9.125") == 1
        file.write_bytes(content.replace(b"9.125\\9.125", b"nan  \\nan  "))


def _gone(study: Path, series: Path) -> None:
    shutil.rmtree(series)


def _unlisted(study: Path, series: Path) -> None:
    table = study.parent.parent / LISTED
    rows = pd.read_csv(table, dtype=str)
    rows[(rows["study_id"] != study.name) | (rows["series_id"] != series.name)].to_csv(table, index=False)


def _absurd_size(study: Path, series: Path) -> None:
    edit(_first(series), Rows=65535, Columns=65535)


def _text(study: Path, series: Path) -> None:
    for file in series.iterdir():
        file.write_text("this is not an image\n" * 20)


def _all_text(study: Path, series: Path) -> None:
    for folder in study.iterdir():
        _text(study, folder)


def _study_gone(study: Path, series: Path) -> None:
    shutil.rmtree(study)


def _first(series: Path) -> Path:
    return sorted(series.iterdir())[0]


BROKEN: dict[str, tuple[str, Callable[[Path, Path], None], str]] = {
    # what is broken: (view of the series, how, the code that tells of it)
    "truncated file": (AXIAL_T2, _truncated, "file_unreadable"),
    "unreadable file": (SAGITTAL_T2, _unreadable, "file_unreadable"),
    "wrong pixel length": (SAGITTAL_T1, _wrong_length, "file_unreadable"),
    "no position": (SAGITTAL_T1, _no_position, "series_unreadable"),
    "no slices": (AXIAL_T2, _no_slices, "series_unreadable"),
    "not a spine": (AXIAL_T2, _not_a_spine, "view_missing"),
    "nan spacing": (SAGITTAL_T2, _nan_spacing, "series_unreadable"),
    "listed, not on disk": (SAGITTAL_T1, _gone, "series_not_on_disk"),
    "on disk, not listed": (SAGITTAL_T1, _unlisted, "series_not_listed"),
    "absurd size": (AXIAL_T2, _absurd_size, "file_unreadable"),
    "text named .dcm": (SAGITTAL_T1, _text, "series_unreadable"),
    "all text": (SAGITTAL_T2, _all_text, "study_unreadable"),
    "study not on disk": (SAGITTAL_T2, _study_gone, "study_unreadable"),
}
"""Each breaks the first series of a view in one way; the study stays gradable unless nothing is left of it."""
LOST = {"all text", "study not on disk"}
"""Of these nothing is left, and they get the prior."""


def with_broken_copies(cohort: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    """A cohort's test part, and beside each healthy study copies of it that are broken; folder and study id by kind.

    Copies are spread over the healthy studies and stand before, between and after them.
    """
    shutil.copytree(cohort / "test_images", folder / "test_images")
    table = pd.read_csv(cohort / LISTED, dtype=str)
    healthy = list(dict.fromkeys(table["study_id"]))
    parts, broken = [], {}
    for number, kind in enumerate(BROKEN):
        study_id, original = str(7_000_000 + number), healthy[number % len(healthy)]
        rows = table[table["study_id"] == original]
        shutil.copytree(cohort / "test_images" / original, folder / "test_images" / study_id)
        parts.append((number % (len(healthy) + 1), rows.assign(study_id=study_id)))
        broken[kind] = study_id
    for number, study_id in enumerate(healthy):
        parts.append((number + 0.5, table[table["study_id"] == study_id]))
    pd.concat([rows for _, rows in sorted(parts, key=lambda part: part[0])]).to_csv(folder / LISTED, index=False)
    for kind, study_id in broken.items():
        view, damage, _ = BROKEN[kind]
        damage(folder / "test_images" / study_id, series_of(folder, study_id, view)[0])
    return folder, broken
