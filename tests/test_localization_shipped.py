"""The localizer that ships: what its files are, who uses it, and how well it does on what it has never seen."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from safetensors import safe_open

from lumbar_utils import __version__, viz
from lumbar_utils.cli import main
from lumbar_utils.crops.extraction import CropSpec
from lumbar_utils.errors import DataError
from lumbar_utils.inference import Predictor
from lumbar_utils.inference import predictor as predictor_module
from lumbar_utils.labels import LEVELS, N_TARGETS, SAGITTAL_T1, SAGITTAL_T2
from lumbar_utils.localization import (
    DiscLocalizer,
    DiscPoints,
    evaluate_points,
    localizer_origin,
    locate_studies,
    open_localizer,
    read_reference,
    summary,
)
from lumbar_utils.localization import localizer as localizer_module
from lumbar_utils.localization.calibration import locate_samples
from lumbar_utils.localization.network import CHAIN
from lumbar_utils.localization.points import LOW_CONFIDENCE_BELOW
from lumbar_utils.localization.preprocessing import normalised
from lumbar_utils.localization.samples import LocalizerSample
from lumbar_utils.localization.synthetic_samples import is_randomised, synthetic_samples
from lumbar_utils.phantom.cohort import generate_cohort
from lumbar_utils.studies.study import CompetitionFolder, find_studies, load_study

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "lumbar_utils" / "weights" / "shipped_localizer"
REAL_MRI = Path(os.environ.get("LUMBAR_REAL_MRI") or ROOT.parent / "shared" / "real_mri")
MAX_BYTES = 20_000_000
UNSEEN_SEED = 918_273
"""Of no training: the weights' own seed is in their JSON."""
SPIN_ECHO = ("ivd_11", "ivd_20", "vb1_10", "vb1_11", *(f"vb2_0{number}" for number in (2, 4, 5, 6, 7, 8)))
KNOWN_SHIFTS = {"ivd_25": [1, True], "vb1_15": [-1, True]}
"""Levels by which the chain of a real series is too low, and whether the localizer gives it low confidence."""


@pytest.fixture(scope="module")
def shipped() -> DiscLocalizer:
    return DiscLocalizer.shipped()


@pytest.fixture(scope="session")
def unseen(shared_folder) -> CompetitionFolder:
    """Four phantoms that nobody has trained on."""
    folder, done = shared_folder / "unseen", shared_folder / "unseen.done"
    with FileLock(str(folder) + ".lock"):
        if not done.exists():
            generate_cohort(folder, n_studies=4, seed=UNSEEN_SEED, test_fraction=0, n_jobs=1, progress=False)
            done.touch()
    return CompetitionFolder.open(folder)


# --- the files ----------------------------------------------------------------------------------------------------


def test_the_weights_are_small_safetensors_and_say_how_they_were_made(shipped):
    weights = WEIGHTS / "model.safetensors"
    assert weights.stat().st_size < MAX_BYTES
    with safe_open(weights, "pt") as tensors:
        assert all(torch.isfinite(tensors.get_tensor(name)).all() for name in tensors.keys())  # noqa: SIM118
    made = json.loads((WEIGHTS / "config.json").read_text())["made"]
    assert made == shipped.made
    assert made["command"].startswith("python tools/make_localizer.py ") and "--seed " in made["command"]
    assert made["seeds"] and all(isinstance(seed, int) for seed in made["seeds"])
    assert shipped.config.trained_on == "synthetic" and made["data"].startswith("synthetic phantoms only")


def test_they_are_read_without_unpickling_anything(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("weights must be read without pickle")

    monkeypatch.setattr(torch, "load", refused)
    monkeypatch.setattr(pickle, "load", refused)
    monkeypatch.setattr(pickle, "Unpickler", refused)
    assert DiscLocalizer.shipped().networks


def test_they_are_named_with_their_origin(shipped, tmp_path):
    words = localizer_origin(shipped)
    assert words == f"localizer: shipped with lumbar_utils {__version__} (trained on synthetic phantoms)"
    folder = shipped.save(tmp_path / "run" / "localizer")
    assert str(folder) in localizer_origin(open_localizer(folder), folder)
    tuned = SimpleNamespace(config=SimpleNamespace(trained_on="synthetic, competition"))
    assert "synthetic phantoms, then the competition's points" in localizer_origin(tuned, folder)


def test_a_library_without_weights_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(localizer_module, "SHIPPED", tmp_path)
    with pytest.raises(DataError, match=r"holds no localizer .*install it again"):
        open_localizer()


# --- how good it is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", [SAGITTAL_T2, SAGITTAL_T1])
def test_all_levels_of_unseen_phantoms_are_found(shipped, unseen, view):
    truth = read_reference(unseen.root / "truth" / "discs.csv")
    found = {}
    for study_id in unseen.study_ids("train"):
        for series in unseen.load_study(study_id).by_view(view):
            found[f"{study_id} {series.series_id}"] = shipped.locate_series(series)
    errors = evaluate_points(found, {name: truth[name.split()[0]] for name in found})
    assert len(errors) >= 15  # a study may lack the view
    far = errors[~(errors["error_mm"] <= 5)]
    assert far.empty, far.to_string()


@pytest.fixture(scope="module")
def single_series() -> list[LocalizerSample]:
    """One scan each of unseen people, every second one randomised beyond reality."""
    return synthetic_samples(range(32), UNSEEN_SEED, 2.0, scans=1, n_slices=9, n_jobs=1, progress=False)


def test_single_series_of_unseen_people_are_found(shipped, single_series):
    """The bars are measured on hundreds by `benchmarks/localization.py`; few of a kind must come near them."""
    for randomised, share in ((False, 0.99), (True, 0.85)):
        located = locate_samples(shipped, [s for s in single_series if is_randomised(s) == randomised])
        assert (located.error_mm[located.in_view] <= 5).mean() >= share
        shown, shifted = located.in_view.any(axis=1), np.nan_to_num(located.shift) != 0
        assert shifted[shown].mean() <= (0.15 if randomised else 0)
        assert (located.confidence[shifted & ~shown] < LOW_CONFIDENCE_BELOW).all(), "scans beside the canal"


def test_a_scan_that_ends_above_the_sacrum_is_located_with_low_confidence(shipped, single_series):
    last = LEVELS.index("l3_l4")
    cuts = []
    for sample in single_series:
        rows = sample.voxels[[CHAIN.index(level) for level in LEVELS], 1]
        end = round((rows[last] + rows[last + 1]) / 2)
        if not is_randomised(sample) and rows[0] > 5 and 50 <= end < sample.pixels.shape[1]:
            pixels = normalised(sample.pixels[:, :end].astype(np.float32))
            cuts.append(replace(sample, pixels=pixels.astype(np.float16)))
    assert len(cuts) >= 8
    located = locate_samples(shipped, cuts)
    chains = [chain for chain in located.chains if chain is not None]
    assert len(chains) >= 0.75 * len(cuts)
    assert not any(chain.anchored for chain in chains)
    assert (located.confidence < LOW_CONFIDENCE_BELOW).all()


def test_real_series_are_labelled_right_and_found_but_for_the_known_failures(shipped):
    """What is true of the series in the folder's README; the same bars hold for series that nobody here has seen."""
    if not (REAL_MRI / "points.csv").is_file():
        pytest.skip(f"no real series at {REAL_MRI} (set LUMBAR_REAL_MRI to a folder with points.csv)")
    reference = read_reference(REAL_MRI / "points.csv", point="posterior", study_column="case")
    found, failures = locate_studies(find_studies(REAL_MRI), shipped, progress=False)
    assert not failures
    errors = evaluate_points(found, reference)
    shifts = errors[errors["shift"] != 0].groupby("study_id")[["shift", "low_confidence"]].first()
    assert dict(zip(shifts.index, shifts.to_numpy().tolist(), strict=True)) == {
        case: outcome for case, outcome in KNOWN_SHIFTS.items() if case in reference
    }
    spin_echo = errors["study_id"].isin(SPIN_ECHO)
    for part in (errors[spin_echo], errors[~spin_echo & ~errors["study_id"].isin(KNOWN_SHIFTS)]):
        numbers = summary(part)
        if part.empty:
            continue
        assert numbers["within_10mm_along"] >= 0.95, part[part["along_mm"].abs() > 10].to_string()
        assert numbers["median_in_plane_centred_mm"] <= 4


def test_a_figure_shows_what_it_finds_with_the_errors_in_mm(shipped, unseen):
    truth = read_reference(unseen.root / "truth" / "discs.csv")
    studies = [unseen.load_study(study_id) for study_id in unseen.study_ids("train")]
    found = {study.study_id: shipped.locate(study) for study in studies}
    errors = evaluate_points(found, truth)
    figure = viz.show_found_discs(
        studies, list(found.values()), {"phantoms": errors}, truths=[truth[s] for s in found], synthetic=True
    )
    text = "\n".join(t.get_text() for t in figure.findobj(plt.Text))
    assert "synthetic" in text and f"median {errors['error_mm'].median():.2f} mm" in text
    assert all(study_id in text for study_id in found) and text.count("error, mm: median") == len(studies)
    with pytest.raises(DataError, match="must be as many"):
        viz.show_found_discs(studies, [], errors)


# --- who uses it --------------------------------------------------------------------------------------------------


def test_localize_uses_it_by_default(unseen, tmp_path, monkeypatch, capsys):
    study_id = unseen.study_ids("train")[0]
    demo = tmp_path / "runs" / "demo" / "localizer"
    demo.mkdir(parents=True)
    (demo / "model.safetensors").write_text("left behind by an earlier run; not to be used")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "points.csv"
    assert main(["localize", str(unseen.study_folder(study_id)), "--out", str(out), "--no-progress"]) == 0
    text = capsys.readouterr().out
    assert f"localizer: shipped with lumbar_utils {__version__}" in text and "1 study in" in text
    table = pd.read_csv(out, dtype=str, keep_default_na=False)
    assert len(table) == 25 and (table["condition"] == "spinal_canal_stenosis").sum() == 5


@pytest.fixture
def predictor_of(monkeypatch):
    """Predictors whose network predicts nothing: only what comes before it is looked at."""
    config = SimpleNamespace(crops=CropSpec(), prior=np.full((N_TARGETS, 3), 1 / 3), synthetic_only=True, training={})
    monkeypatch.setattr(predictor_module, "load_model", lambda folder: (torch.nn.Identity(), config))
    return lambda **options: Predictor("run", "cpu", precision="float32", **options)


def test_a_predictor_uses_it_when_none_is_given(predictor_of, unseen, monkeypatch):
    opened = []
    shipped = DiscLocalizer.shipped
    monkeypatch.setattr(DiscLocalizer, "shipped", lambda **options: opened.append(1) or shipped(**options))
    predictor = predictor_of()
    assert not opened  # read when it is first needed
    study_id = unseen.study_ids("train")[0]
    truth = read_reference(unseen.root / "truth" / "discs.csv")[study_id]
    study = unseen.load_study(study_id)
    discs = predictor.predict_study(study).discs
    assert np.linalg.norm(discs.points - truth, axis=1).max() < 5
    again = next(predictor.predict_studies([s for s in find_studies(unseen.root) if s.study_id == study_id]))
    assert np.allclose(again.discs.points, discs.points)
    assert len(opened) == 1


def test_a_localizer_or_points_that_are_given_win(predictor_of, unseen, monkeypatch):
    monkeypatch.setattr(DiscLocalizer, "shipped", lambda **_: pytest.fail("the shipped localizer was not wanted"))
    study = load_study(find_studies(unseen.root)[0])
    points = read_reference(unseen.root / "truth" / "discs.csv")[study.study_id]
    given = DiscPoints(study.study_id, "", points, np.ones(5), source="truth")
    assert predictor_of().predict_study(study, given).discs is given
    assert predictor_of(localizer=SimpleNamespace(locate=lambda _: given)).predict_study(study).discs is given


def codes(prediction):
    return [issue.code for issue in prediction.issues]


def test_a_prediction_has_an_issue_when_the_level_labelling_has_low_confidence(predictor_of, unseen):
    study = load_study(find_studies(unseen.root)[0])
    points = read_reference(unseen.root / "truth" / "discs.csv")[study.study_id]
    low = DiscPoints(study.study_id, "", points, np.full(5, 0.5), ("low_confidence",) * 5)
    assert "levels_low_confidence" in codes(predictor_of().predict_study(study, low))
    one = DiscPoints(study.study_id, "", points, np.full(5, 0.5), ("low_confidence", "", "", "", ""))
    assert "levels_low_confidence" not in codes(predictor_of().predict_study(study, one))


def test_a_library_without_weights_is_no_fault_of_the_study(predictor_of, unseen, monkeypatch):
    monkeypatch.setattr(localizer_module, "SHIPPED", Path("absent"))
    with pytest.raises(DataError, match="holds no localizer"):
        predictor_of().predict_study(load_study(find_studies(unseen.root)[0]))
