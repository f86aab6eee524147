"""Crops to train a classifier on, straight from phantoms: scanned around the spine only, never written as DICOM.

Images have the resolution of either profile and a narrow field of view, so a study takes half a second instead of
several. Every second body is randomised, and fewer of the scans, since what shows no anatomy teaches nothing about it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from ..dicom.series import Series, Stack
from ..errors import LumbarError
from ..files import write_json
from ..labels import AXIAL_T2, N_LEVELS, SAGITTAL_T1, SAGITTAL_T2, SEVERITIES, TARGETS
from ..localization import DiscPoints
from ..notebook_html import progress_bar
from ..parallel import JobFailure, run_jobs
from ..phantom.anatomy import Body
from ..phantom.disease import sample_person
from ..phantom.protocol import Protocol, sample_protocols
from ..phantom.reader_model import label_person
from ..phantom.scanner import acquire
from ..studies.data import Study
from .cache import MANIFEST, CropCache, crop_file
from .extraction import FORMAT_VERSION, CropSpec, extract_crops

MARGIN_MM = 44.0  # of a scan around the canal points: boxes reach 35 mm
RANDOMISED_SCANS = 0.35
COARSE_SCANS = {SAGITTAL_T2: 0.6, SAGITTAL_T1: 0.2, AXIAL_T2: 0.8}  # with the resolution of profile `demo`, else `rsna`
POINT_SD_MM = (1.0, 1.5, 1.5)  # of the points around their truth, LPS; a localizer's errors come on top in training
_STREAM_CROPS = 51


def synthetic_crops(
    bodies: range,
    seed: int,
    folder: Path | str,
    spec: CropSpec | None = None,
    *,
    n_jobs: int = 2,
    progress: bool = True,
) -> tuple[CropCache, pd.DataFrame]:
    """Make a cache of crops in `folder` and its labels in `train.csv` form, drawn by the phantoms' reader model.

    A body is the same for the same number and `seed`. Files that are there are taken as they are. Raises `LumbarError`
    when a body cannot be scanned.
    """
    folder, spec = Path(folder), spec or CropSpec()
    folder.mkdir(parents=True, exist_ok=True)
    study_ids = tuple(f"synthetic-{seed}-{index}" for index in bodies)
    tasks = ((index, seed, spec, crop_file(folder, name, spec)) for index, name in zip(bodies, study_ids, strict=True))
    rows = []
    jobs = run_jobs(_make_crops, tasks, n_jobs=n_jobs, ordered=True)
    for index, labels in progress_bar(
        jobs, total=len(bodies), desc="synthetic crops", unit="body", disable=not progress
    ):
        if isinstance(labels, JobFailure):
            raise LumbarError(f"body {bodies[index]} of seed {seed} cannot be scanned: {labels.reason}")
        rows.append(labels)
    manifest = {"version": FORMAT_VERSION, "spec": spec.to_json(), "study_ids": study_ids, "failures": {}}
    write_json(folder / MANIFEST, manifest)
    labels = pd.DataFrame(np.array(SEVERITIES)[np.array(rows)], columns=list(TARGETS))
    labels.insert(0, "study_id", study_ids)
    return CropCache(folder, spec, study_ids, {}), labels


@threadpool_limits.wrap(limits=1)
def _make_crops(index: int, seed: int, spec: CropSpec, path: Path) -> np.ndarray:
    person = sample_person(index, seed, randomise=index % 2 == 1)
    if not path.exists():
        study, points = scan_person(Body(person), np.random.default_rng([seed, index, _STREAM_CROPS]))
        extract_crops(replace(study, study_id=f"synthetic-{seed}-{index}"), points, spec).save(path)
    return label_person(person.degrees, index, seed)


def scan_person(
    body: Body, rng: np.random.Generator, views: tuple[str, ...] = (SAGITTAL_T2, SAGITTAL_T1, AXIAL_T2)
) -> tuple[Study, DiscPoints]:
    """A study around the canal of a body, and points beside the true ones."""
    canal = body.truth.canal
    series = []
    for view in views:
        profile = "demo" if rng.random() < COARSE_SCANS[view] else "rsna"
        randomise = rng.random() < RANDOMISED_SCANS
        protocol = around_canal(sample_protocols(body, rng, profile, views=(view,), randomise=randomise)[0], canal)
        stacks = (
            Stack(pixels.astype(np.float32), geometry, tuple(range(1, len(geometry) + 1)), ())
            for geometry, pixels in acquire(body, protocol, rng)
        )
        series.append(Series("synthetic", view, view, tuple(stacks)))
    points = canal + rng.normal(0, POINT_SD_MM, (N_LEVELS, 3))
    return Study("synthetic", tuple(series)), DiscPoints("synthetic", "", points, np.ones(N_LEVELS))


def around_canal(protocol: Protocol, canal: np.ndarray) -> Protocol:
    """The same slices with the same pixels, of the surroundings of the canal's points (5, 3) only."""
    blocks, size = [], np.zeros(2)
    for block in protocol.blocks:
        offsets = canal - block.center
        through = np.abs(offsets @ block.normal)
        reach = np.abs(block.offsets).max() + MARGIN_MM / 2
        near = offsets[(through < reach) | (protocol.view != AXIAL_T2)]
        near = near if len(near) else offsets[[through.argmin()]]
        plane = np.stack([block.column_cosine, block.row_cosine])
        low, high = (near @ plane.T).min(axis=0), (near @ plane.T).max(axis=0)
        size = np.maximum(size, high - low + 2 * MARGIN_MM)
        blocks.append(replace(block, center=block.center + (low + high) / 2 @ plane))
    pixel = np.array(protocol.fov_mm) / protocol.acquisition_matrix
    finer = np.array(protocol.reconstruction_matrix) / protocol.acquisition_matrix
    measured = 2 * np.ceil(size / pixel / 2).astype(int)
    stored = 2 * np.round(measured * finer / 2).astype(int)
    return replace(
        protocol, blocks=tuple(blocks), fov_mm=tuple((measured * pixel).tolist()),
        acquisition_matrix=tuple(measured.tolist()), reconstruction_matrix=tuple(stored.tolist()), border=(0, 0, 0, 0),
    )  # fmt: skip
