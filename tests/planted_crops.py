"""Small random crops whose grades can be read from bright places, and tiny trainings on them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lumbar_utils.crops.extraction import VIEW_AXES, CropSpec, StudyCrops
from lumbar_utils.labels import AXIAL_T2, MISSING, N_TARGETS, SAGITTAL_T1, SAGITTAL_T2, VIEWS, decode_severities
from lumbar_utils.localization import DiscPoints
from lumbar_utils.models.classifier import ClassifierConfig
from lumbar_utils.training.augmentation import AugmentConfig
from lumbar_utils.training.config import TrainConfig

SPEC = CropSpec(shapes={SAGITTAL_T2: (8, 16, 16), AXIAL_T2: (8, 16, 16), SAGITTAL_T1: (16, 16, 16)})
POINTS = np.stack([np.zeros(5), np.zeros(5), -35.0 * np.arange(5)], axis=-1)


def disc_points(study_id: str) -> DiscPoints:
    return DiscPoints(study_id, "1", POINTS, np.ones(5), source="truth")


def study_crops(study_id: str, images: dict, covered: dict | None = None, spec: CropSpec = SPEC) -> StudyCrops:
    covered = covered or {view: np.ones(images[view].shape, bool) for view in VIEWS}
    return StudyCrops(
        study_id,
        spec,
        {view: np.asarray(images[view], np.float16) for view in VIEWS},
        covered,
        {view: np.tile(np.stack(VIEW_AXES[view]), (5, 1, 1)) for view in VIEWS},
        {view: (None,) * 5 for view in VIEWS},
        disc_points(study_id),
    )


def planted_study(study_id: str, codes: np.ndarray, rng: np.random.Generator) -> StudyCrops:
    """One study whose grades can be read from brightness at five places, each in the view that shows the condition."""
    grade = codes.reshape(5, 5) / 2
    images = {view: 0.3 + 0.05 * rng.normal(size=(5, *SPEC.shapes[view])) for view in VIEWS}
    for level in range(5):
        canal, left_foramen, right_foramen, left_recess, right_recess = grade[:, level]
        images[SAGITTAL_T2][level, 2:6, :, 6:10] += canal
        images[AXIAL_T2][level, :, 2:6, 6:10] += canal
        images[AXIAL_T2][level, :, 9:14, 1:5] += right_recess
        images[AXIAL_T2][level, :, 9:14, 11:15] += left_recess
        images[SAGITTAL_T1][level, 2:5, 5:10, 5:10] += right_foramen
        images[SAGITTAL_T1][level, 11:14, 5:10, 5:10] += left_foramen
    return study_crops(study_id, images)


def planted_cohort(n: int, seed: int = 0, missing: float = 0.02) -> tuple[dict[str, StudyCrops], pd.DataFrame]:
    """Crops by study id and the label table in train.csv form."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(3, p=[0.5, 0.25, 0.25], size=(n, N_TARGETS)).astype(np.int8)
    ids = [str(1000 + i) for i in range(n)]
    crops = {study_id: planted_study(study_id, codes[i], rng) for i, study_id in enumerate(ids)}
    codes[rng.random(codes.shape) < missing] = MISSING
    return crops, decode_severities(codes, ids)


QUIET = AugmentConfig(shift_mm=0.0, rotation_degrees=0.0, zoom=0.0)
SMALL = ClassifierConfig(encoder="resnet10t", width=64, view_dropout=0.0)
FAST = ClassifierConfig(encoder="test_resnet", family="2.5d", width=64, view_dropout=0.0)
"""One of 40 times fewer weights, for tests that are not about the network."""


def tiny_config(**values) -> TrainConfig:
    """A training of seconds on a CPU."""
    defaults = {
        "classifier": SMALL,
        "augment": QUIET,
        "epochs": 2,
        "batch_size": 4,
        "folds": 4,
        "ema_decay": 0.9,
        "device": "cpu",
        "precision": "float32",
    }
    return TrainConfig(**{**defaults, **values})
