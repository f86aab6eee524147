"""The classifier that ships: what its files are, what it has learnt from, and how well it does on unseen people."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from lumbar_utils.crops.extraction import StudyCrops
from lumbar_utils.crops.synthetic_crops import synthetic_crops
from lumbar_utils.inference import Predictor
from lumbar_utils.labels import VIEWS
from lumbar_utils.metrics.score import competition_score, weighted_prior
from lumbar_utils.models.run_folder import SHIPPED_CLASSIFIER
from lumbar_utils.training.datasets import codes_by_study

ROOT = Path(__file__).resolve().parent.parent
REAL_RSNA = ROOT.parent / "shared" / "real_rsna"
MAX_BYTES = 40_000_000
UNSEEN_SEED = 918_273
"""Of no training: the weights' own seed is in their JSON."""


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(device="cpu", precision="float32")


def only(crops: StudyCrops, view: str) -> StudyCrops:
    shown = {v: crops.covered[v] & (v == view) for v in VIEWS}
    return replace(crops, covered=shown, images={v: np.where(shown[v], crops.images[v], 0) for v in VIEWS})


def test_all_weights_together_are_small_and_safetensors():
    files = [path for path in (ROOT / "lumbar_utils" / "weights").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    for path in SHIPPED_CLASSIFIER.rglob("model.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            names = list(tensors.keys())
            assert names and all(tensors.get_tensor(name).float().isfinite().all() for name in names)


def test_its_making_is_on_record():
    made = json.loads((SHIPPED_CLASSIFIER / "made.json").read_text("utf-8"))
    assert made["data"] == "synthetic phantoms only; no scan of a person was used"
    assert (
        made["command"].startswith("python tools/make_classifier.py --seed ")
        and str(UNSEEN_SEED) not in made["command"]
    )
    assert set(made["measured_on_patients"]["auc_severe"]) == {"canal", "recesses", "foramina"}


def test_it_grades_unseen_phantoms_better_than_their_prior_whatever_views_there_are(predictor, tmp_path):
    crops, labels = synthetic_crops(range(40), UNSEEN_SEED, tmp_path, predictor.spec, n_jobs=2, progress=False)
    codes = np.array(list(codes_by_study(labels).values()))
    prior = competition_score(codes, np.broadcast_to(weighted_prior(codes), (40, 25, 3))).total
    everything = competition_score(codes, predictor.predict_crops(crops)).total
    assert everything < 0.85 * prior
    for view in VIEWS:
        alone = competition_score(codes, predictor.predict_crops(only(item, view) for item in crops)).total
        assert everything < alone < 1.1 * prior, f"{view} alone"


@pytest.mark.skipif(not REAL_RSNA.is_dir(), reason="no real patients here")
def test_it_tells_severe_narrowing_of_patients(predictor):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from real_patients import axial_studies, collect, measure

    _, crops, labels = collect(islice(axial_studies(REAL_RSNA), 80), predictor.spec)
    table = measure(labels, {"shipped": predictor.predict_crops(crops)}, n=2)
    areas = table[table["measure"] == "AUC severe"].set_index("group")["value"]
    assert areas["spinal"] > 0.9 and areas["subarticular"] > 0.8
