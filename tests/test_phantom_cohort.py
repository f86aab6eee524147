"""The cohort on disk: the competition's layout, its quirks at their rates, its bytes always the same."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from lumbar_utils.errors import DataError
from lumbar_utils.files import lock_folder
from lumbar_utils.geometry import StackGeometry
from lumbar_utils.labels import (
    AXIAL_T2,
    CONDITIONS,
    LEVELS,
    N_TARGETS,
    SAGITTAL_T1,
    SAGITTAL_T2,
    TARGETS,
    VIEWS,
    condition_from_title,
    encode_severities,
    level_from_title,
    row_ids,
)
from lumbar_utils.phantom import annotator, dataset_quirks
from lumbar_utils.phantom.anatomy import Body
from lumbar_utils.phantom.cohort import CohortConfig, generate_cohort, without_levels_above
from lumbar_utils.phantom.disease import sample_person
from lumbar_utils.phantom.protocol import sample_protocols
from lumbar_utils.phantom.writer import TRANSFER_SYNTAXES, stable_uid, write_series

N_STUDIES = 3


# ---------------------------------------------------------------- the quirks


@pytest.fixture(scope="module")
def plans():
    return [dataset_quirks.sample_study_plan(np.random.default_rng([3, i])) for i in range(8000)]


def test_number_of_series_per_view_is_the_competitions(plans):
    axial = np.array([plan.views.count(AXIAL_T2) for plan in plans])
    assert (axial == 1).mean() == pytest.approx(0.83, abs=0.02)
    assert (axial == 2).mean() == pytest.approx(0.155, abs=0.02)
    assert 0.005 < (axial == 3).mean() < 0.025
    t1 = np.array([plan.views.count(SAGITTAL_T1) for plan in plans])
    assert 0.001 < (t1 == 2).mean() < 0.008 and (t1 == 0).mean() < 0.004
    assert np.mean([plan.views.count(SAGITTAL_T2) == 0 for plan in plans]) < 0.003


def test_missing_labels_follow_the_real_pattern(plans):
    unlabelled = np.array([plan.unlabelled for plan in plans]).reshape(-1, 5, 5)
    assert unlabelled.mean() == pytest.approx(572 / 49375, rel=0.2)
    assert unlabelled.any(axis=(1, 2)).mean() == pytest.approx(185 / 1975, rel=0.2)
    assert unlabelled[:, 3:, 0].mean() == pytest.approx(0.08, abs=0.015)
    assert unlabelled[:, 3:, 1].mean() == pytest.approx(0.04, abs=0.01)
    assert unlabelled[:, 0].mean() < 0.005
    for plan in plans[:500]:
        assert plan.unlabelled.reshape(5, 5)[3:, : plan.axial_top_level].all()


def test_order_of_slices_is_the_competitions(plans):
    sagittal = [s.forward for plan in plans for s in plan.series if s.view == SAGITTAL_T2]
    axial = [s.forward for plan in plans for s in plan.series if s.view == AXIAL_T2]
    assert np.mean(sagittal) == pytest.approx(0.64, abs=0.02)
    assert np.mean(axial) == pytest.approx(0.88, abs=0.02)


def sagittal_stack(n=11, size=160, spacing=2.0, step=4.5):
    """A sagittal stack around the origin whose normal points to the patient's right."""
    row, column = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0])
    normal = np.cross(row, column)
    corner = -(size - 1) / 2 * spacing * (row + column)
    offsets = (np.arange(n) - (n - 1) / 2) * step
    return StackGeometry(corner + offsets[:, None] * normal, row, column, (spacing, spacing), (size, size))


def axial_stack(z, n=5, tilt=0.0, size=100, spacing=2.0, step=4.0):
    row, column = np.array([1.0, 0.0, 0.0]), np.array([0.0, np.cos(tilt), np.sin(tilt)])
    normal = np.cross(row, column)
    corner = np.array([0, 0, z]) - (size - 1) / 2 * spacing * (row + column)
    offsets = (np.arange(n) - (n - 1) / 2) * step
    return StackGeometry(corner + offsets[:, None] * normal, row, column, (spacing, spacing), (size, size))


@pytest.mark.parametrize("forward", [True, False])
def test_sagittal_numbers_run_from_right_to_left_or_back(forward):
    stack = sagittal_stack()
    (numbers,) = dataset_quirks.number_slices([stack], dataset_quirks.SeriesPlan(SAGITTAL_T2, forward=forward))
    x = stack.positions[np.argsort(numbers), 0]
    assert sorted(numbers) == list(range(1, 12))
    assert np.all(np.diff(x) > 0) if forward else np.all(np.diff(x) < 0)


def test_axial_numbers_go_down_through_the_blocks_and_mixed_ones_do_not():
    stacks = [axial_stack(-40, tilt=-0.2), axial_stack(30, tilt=0.15), axial_stack(0)]
    z = np.concatenate([[stack[i].pixel_to_world([49.5, 49.5])[2] for i in range(len(stack))] for stack in stacks])
    plain = np.concatenate(dataset_quirks.number_slices(stacks, dataset_quirks.SeriesPlan(AXIAL_T2)))
    assert np.all(np.diff(z[np.argsort(plain)]) < 0)
    mixed = np.concatenate(dataset_quirks.number_slices(stacks, dataset_quirks.SeriesPlan(AXIAL_T2, mixed=True)))
    signs = np.sign(np.diff(z[np.argsort(mixed)]))
    assert set(signs) == {-1.0, 1.0}
    assert sorted(mixed) == list(range(1, 16))


def test_instance_numbers_can_start_late_and_have_gaps():
    plan = dataset_quirks.SeriesPlan(SAGITTAL_T1, first_number=20, skipped=(3, 7))
    (numbers,) = dataset_quirks.number_slices([sagittal_stack(10)], plan)
    assert sorted(numbers) == [20, 21, 22, 24, 25, 26, 27, 29, 30, 31]


# ---------------------------------------------------------------- the points


def study_series(*, t1=True, t2=True):
    def stored(series_id, view, *stacks):
        return annotator.StoredSeries(
            series_id,
            view,
            stacks,
            tuple(dataset_quirks.number_slices([s], dataset_quirks.SeriesPlan(view))[0] for s in stacks),
        )

    series = [stored("30", AXIAL_T2, axial_stack(0, n=45))]
    series += [stored("10", SAGITTAL_T1, sagittal_stack(15))] if t1 else []
    series += [stored("20", SAGITTAL_T2, sagittal_stack(15))] if t2 else []
    return series


def places():
    canal = np.stack([np.array([1.0, 5.0, 70 - 35.0 * level]) for level in range(5)])
    side = np.array([[1.0, 0, 0], [-1.0, 0, 0]])
    return np.stack([canal, *(canal + mm * direction for mm in (20, 9) for direction in side)])


def annotated(seed, series=None, labelled=None):
    labelled = np.ones(N_TARGETS, dtype=bool) if labelled is None else labelled
    rng = np.random.default_rng([1, seed])
    return annotator.annotate(series or study_series(), places(), labelled, rng)


def test_points_lie_on_the_right_series_near_the_truth():
    series = study_series()
    errors, same_slice = [], []
    for seed in range(120):
        points, visible = annotated(seed, series)
        assert visible.all()
        by_target = {p.target: p for p in points}
        for p in points:
            condition, level = divmod(p.target, 5)
            stored = next(s for s in series if s.series_id == p.series_id)
            assert stored.view == (SAGITTAL_T2 if condition == 0 else SAGITTAL_T1 if condition < 3 else AXIAL_T2)
            stack, numbers = stored.stacks[0], stored.instance_numbers[0]
            world = stack[int(np.flatnonzero(numbers == p.instance_number)[0])].pixel_to_world([p.x, p.y])
            errors.append(np.linalg.norm(world - places()[condition, level]))
        for level in range(5):
            if not {15 + level, 20 + level} <= by_target.keys():
                continue
            left, right = by_target[15 + level], by_target[20 + level]
            assert left.x > right.x
            same_slice.append(left.instance_number == right.instance_number)
    assert np.median(errors) < 3.5
    assert np.mean(np.array(errors) > 12) < 0.01
    assert np.mean(same_slice) == pytest.approx(0.62, abs=0.06)


def test_annotation_errors_come_at_the_real_rates():
    corner, missing, swapped, total = 0, 0, 0, 1500
    series = study_series()
    for seed in range(total):
        points, _ = annotated(seed, series)
        by_target = {p.target: p for p in points}
        canal = [by_target[t] for t in range(5) if t in by_target]
        corner += sum(p.x < 8 and p.y < 8 for p in canal)
        missing += 5 - len(canal)
        pairs = [(5 + level, 10 + level) for level in range(5) if {5 + level, 10 + level} <= by_target.keys()]
        swapped += sum(by_target[a].instance_number < by_target[b].instance_number for a, b in pairs)
    assert corner == pytest.approx(total * 13 / 1975, abs=9)
    assert missing == pytest.approx(total * 141 / 1975, rel=0.5)
    assert swapped == pytest.approx(total * 5 * 0.0025, abs=12)


def test_without_a_t2_series_the_canal_points_lie_on_t1():
    points, visible = annotated(0, study_series(t2=False))
    assert visible.all()
    assert {p.series_id for p in points if p.target < 5} == {"10"}


def test_what_no_series_covers_is_neither_pointed_at_nor_visible():
    series = [s for s in study_series() if s.view != AXIAL_T2]
    short = axial_stack(-50, n=12)
    series.append(
        annotator.StoredSeries(
            "30", AXIAL_T2, (short,), tuple(dataset_quirks.number_slices([short], dataset_quirks.SeriesPlan(AXIAL_T2)))
        )
    )
    points, visible = annotated(0, series)
    assert visible.reshape(5, 5)[3:].tolist() == [[False, False, False, True, True]] * 2
    assert {p.target % 5 for p in points if p.target >= 15} <= {3, 4}


# ---------------------------------------------------------------- the files


@pytest.mark.parametrize("syntax", sorted(TRANSFER_SYNTAXES))
def test_files_read_back_exactly_in_every_transfer_syntax(tmp_path, syntax):
    stack = sagittal_stack(3, size=40)
    pixels = np.random.default_rng(0).integers(0, 4096, (3, 40, 40), dtype=np.uint16)
    header = {"SeriesDescription": "SAG STIR", "EchoTime": 60.0, "InversionTime": 150, "SpacingBetweenSlices": 4.5}
    ids = {"study_id": "12", "series_id": "34"}
    kwargs = {"header": header, "instance_numbers": [np.array([7, 5, 6])], "transfer_syntax": syntax}
    assert write_series(tmp_path, [(stack, pixels)], **ids, **kwargs) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["5.dcm", "6.dcm", "7.dcm"]
    for index, number in enumerate((7, 5, 6)):
        data = pydicom.dcmread(tmp_path / f"{number}.dcm")
        assert data.file_meta.TransferSyntaxUID == TRANSFER_SYNTAXES[syntax]
        np.testing.assert_array_equal(data.pixel_array, pixels[index])
        np.testing.assert_allclose(np.array(data.ImagePositionPatient, float), stack.positions[index], atol=1e-6)
        np.testing.assert_allclose(np.array(data.PixelSpacing, float), stack.spacing)
        assert data.InstanceNumber == number
        assert (data.Manufacturer, str(data.PatientName)) == ("Synthetic", "SYNTHETIC^PHANTOM")
        assert "Synthetic" in data.ImageComments
        assert (data.InversionTime, data.EchoTime, data.SpacingBetweenSlices) == (150, 60, 4.5)


def test_the_writer_refuses_what_does_not_fit(tmp_path):
    stack = sagittal_stack(2, size=8)
    pixels = np.zeros((2, 8, 8), dtype=np.uint16)
    kwargs = {"study_id": "1", "series_id": "2", "header": {"SeriesDescription": "T2"}}
    with pytest.raises(DataError, match="comes twice"):
        write_series(tmp_path, [(stack, pixels)], instance_numbers=[np.array([1, 1])], **kwargs)
    with pytest.raises(DataError, match="do not fit"):
        write_series(tmp_path, [(stack, pixels[:1])], instance_numbers=[np.array([1, 2])], **kwargs)
    with pytest.raises(DataError, match="unknown transfer syntax"):
        write_series(tmp_path, [(stack, pixels)], instance_numbers=[np.array([1, 2])], transfer_syntax="zip", **kwargs)


def test_uids_are_stable_and_legal():
    uid = stable_uid("a", 1, 2)
    assert uid == stable_uid("a", 1, 2) != stable_uid("a", 1, 3)
    assert uid.is_valid and len(uid) <= 64


# ---------------------------------------------------------------- the cohort


def make(folder, **changes):
    settings = {"n_studies": N_STUDIES, "seed": 11, "test_fraction": 0.34, "n_jobs": 1, "progress": False}
    return generate_cohort(folder, **{**settings, **changes})


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom") / "cohort"
    summary = make(root)
    return root, summary


def test_the_layout_is_the_competitions(cohort):
    root, summary = cohort
    assert (summary["n_train"], summary["n_test"], summary["reused"]) == (2, 1, False)
    train, test = pd.read_csv(root / "train.csv"), pd.read_csv(root / "test_series_descriptions.csv")
    assert list(train.columns) == ["study_id", *TARGETS]
    assert len(train) == 2 and train["study_id"].is_monotonic_increasing and train["study_id"].max() < 2**32
    series = pd.read_csv(root / "train_series_descriptions.csv")
    assert list(series.columns) == list(test.columns) == ["study_id", "series_id", "series_description"]
    assert set(series["series_description"]) <= set(VIEWS)
    for part, frame in (("train", series), ("test", test)):
        folders = {(int(p.parent.name), int(p.name)) for p in (root / f"{part}_images").glob("*/*")}
        assert folders == set(zip(frame["study_id"], frame["series_id"], strict=True))
    assert summary["n_series"] == len(series) + len(test)
    assert summary["n_files"] == len(list(root.glob("*_images/*/*/*.dcm")))
    submission = pd.read_csv(root / "sample_submission.csv")
    assert list(submission.columns) == ["row_id", "normal_mild", "moderate", "severe"]
    study = test["study_id"].iloc[0]
    assert submission["row_id"].tolist() == sorted(row_ids([study]))
    assert submission["row_id"].iloc[0] == f"{study}_left_neural_foraminal_narrowing_l1_l2"
    assert "synthetic" in (root / "SYNTHETIC.md").read_text().lower()
    assert not (root / "truth" / "parts").exists()


def test_the_truth_is_complete_for_both_parts(cohort):
    root, _ = cohort
    truth = root / "truth"
    discs, latents = pd.read_csv(truth / "discs.csv"), pd.read_csv(truth / "latents.csv")
    labels, oracle = pd.read_csv(truth / "labels.csv"), pd.read_csv(truth / "oracle.csv")
    wanted = [f"{name}_{axis}" for name in ("centre", "posterior", "canal", "normal") for axis in "xyz"]
    assert list(discs.columns) == ["study_id", "level", *wanted]
    assert len(discs) == N_STUDIES * 5 and discs["level"].tolist()[:5] == list(LEVELS)
    assert list(latents.columns) == ["study_id", *TARGETS] and latents[list(TARGETS)].to_numpy().max() < 3
    assert oracle["row_id"].tolist() == row_ids(labels["study_id"])
    np.testing.assert_allclose(oracle[["normal_mild", "moderate", "severe"]].sum(axis=1), 1)
    state = json.loads((truth / "cohort.json").read_text())
    assert state["synthetic"] and state["config"]["seed"] == 11
    train = pd.read_csv(root / "train.csv")
    kept = labels[labels["study_id"].isin(train["study_id"])].reset_index(drop=True)
    np.testing.assert_array_equal(encode_severities(train), encode_severities(kept))


def test_a_randomised_cohort_holds_randomised_people(tmp_path):
    root = tmp_path / "wide"
    make(root, n_studies=1, test_fraction=0.0, randomise=True)
    discs = pd.read_csv(root / "truth" / "discs.csv").set_index("level")
    wide = Body(sample_person(0, 11, randomise=True)).truth
    columns = ["canal_x", "canal_y", "canal_z"]
    np.testing.assert_allclose(discs.loc[list(LEVELS), columns].to_numpy(), wide.canal, atol=1e-5)


def test_points_name_existing_files_and_the_right_view(cohort):
    root, _ = cohort
    points = pd.read_csv(root / "train_label_coordinates.csv")
    assert list(points.columns) == ["study_id", "series_id", "instance_number", "condition", "level", "x", "y"]
    assert len(points) > 20
    view = pd.read_csv(root / "train_series_descriptions.csv").set_index("series_id")["series_description"]
    for row in points.itertuples():
        condition = CONDITIONS.index(condition_from_title(row.condition))
        assert level_from_title(row.level) in LEVELS
        assert view[row.series_id] == (SAGITTAL_T2, SAGITTAL_T1, SAGITTAL_T1, AXIAL_T2, AXIAL_T2)[condition]
        path = root / "train_images" / str(row.study_id) / str(row.series_id) / f"{row.instance_number}.dcm"
        header = pydicom.dcmread(path, stop_before_pixels=True)
        assert 0 <= row.x <= header.Columns - 1 and 0 <= row.y <= header.Rows - 1


def test_canal_points_lie_where_the_truth_says(cohort):
    root, _ = cohort
    points = pd.read_csv(root / "train_label_coordinates.csv")
    points = points[points["condition"] == "Spinal Canal Stenosis"]
    discs = pd.read_csv(root / "truth" / "discs.csv").set_index(["study_id", "level"])
    errors = []
    for row in points.itertuples():
        path = root / "train_images" / str(row.study_id) / str(row.series_id) / f"{row.instance_number}.dcm"
        header = pydicom.dcmread(path, stop_before_pixels=True)
        orientation = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        steps = np.array([row.x, row.y]) * np.array(header.PixelSpacing, float)[::-1]
        world = np.array(header.ImagePositionPatient, float) + steps @ orientation
        true = discs.loc[(row.study_id, level_from_title(row.level))][["canal_x", "canal_y", "canal_z"]]
        errors.append(np.linalg.norm(world - true.to_numpy(dtype=float)))
    assert np.median(errors) < 4  # half a slice and the jitter


def test_a_finished_cohort_is_reused_and_another_one_refused(cohort):
    root, _ = cohort
    before = digests(root)
    assert make(root)["reused"]
    assert digests(root) == before
    with pytest.raises(DataError, match=r"seed is 11, wanted 12.*overwrite=True"):
        make(root, seed=12)
    assert digests(root) == before


def test_the_number_of_workers_changes_no_byte(cohort, tmp_path):
    root, _ = cohort
    copy = tmp_path / "copy"
    make(copy, n_jobs=2)
    assert digests(copy) == digests(root)


def test_a_half_written_cohort_is_continued(cohort, tmp_path, monkeypatch):
    from lumbar_utils.phantom import cohort as module

    root, _ = cohort
    copy = tmp_path / "copy"
    original, made = module.make_study, []

    def stops_after_one(out, config, index):
        if len(made) == 1:
            (out / f"{config.part(index)}_images" / config.study_id(index) / "rubbish").mkdir(parents=True)
            raise KeyboardInterrupt
        made.append(index)
        original(out, config, index)

    monkeypatch.setattr(module, "make_study", stops_after_one)
    with pytest.raises(KeyboardInterrupt):
        make(copy)
    assert not (copy / "train.csv").exists()

    def counts(out, config, index):
        made.append(index)
        original(out, config, index)

    monkeypatch.setattr(module, "make_study", counts)
    make(copy)
    assert sorted(made) == list(range(N_STUDIES))
    assert digests(copy) == digests(root)


@pytest.mark.parametrize("whole", [0, 1, 3])
def test_a_cohort_that_met_a_full_disk_at_any_file_goes_on(cohort, tmp_path, full_disk, whole):
    with full_disk(whole), pytest.raises(DataError, match=r"new/.*No space left"):
        make(tmp_path / "new")
    make(tmp_path / "new")
    assert digests(tmp_path / "new") == digests(cohort[0])


def test_a_disk_that_fills_up_under_an_image_is_said_in_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=r"\.dcm: cannot be written \(\[Errno 28\] No space left") as caught:
        make(tmp_path / "new")
    assert "\n" not in str(caught.value)


def test_two_processes_do_not_make_one_cohort(tmp_path):
    with lock_folder(tmp_path), pytest.raises(DataError, match="another process is making a cohort there"):
        make(tmp_path)


def test_somebody_elses_folder_is_left_alone(tmp_path):
    (tmp_path / "train.csv").write_text("study_id\n1\n")
    with pytest.raises(DataError, match="not empty"):
        make(tmp_path)
    with pytest.raises(DataError, match="not empty"):
        make(tmp_path, overwrite=True)
    assert (tmp_path / "train.csv").read_text() == "study_id\n1\n"


def test_a_broken_state_file_is_named(tmp_path):
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "cohort.json").write_text("{")
    with pytest.raises(DataError, match=r"cohort\.json cannot be read"):
        make(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"profile": "big"}, "unknown profile"), ({"n_studies": 0}, "n_studies"), ({"test_fraction": 1.0}, "fraction")],
)
def test_settings_out_of_range_are_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        make(tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


def test_ids_are_unique_and_do_not_depend_on_the_cohorts_size():
    small, large = (CohortConfig(n, 4, "demo", 0.2, False, "explicit") for n in (10, 2000))
    studies = [large.study_id(i) for i in range(2000)]
    series = [large.series_id(i, k) for i in range(2000) for k in range(7)]
    assert len(set(studies)) == 2000 and len(set(series)) == 14000
    assert [small.study_id(i) for i in range(10)] == studies[:10]
    assert max(map(len, studies)) == 10


def test_overwrite_replaces_a_cohort(cohort, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(cohort[0], copy)
    assert make(copy, n_studies=1, seed=12, overwrite=True)["reused"] is False
    assert json.loads((copy / "truth" / "cohort.json").read_text())["config"]["seed"] == 12
    assert len(list(copy.glob("*_images/*"))) == 1


def n_slices(protocol):
    return sum(block.n_slices for block in protocol.blocks)


def test_axial_slices_above_the_first_covered_level_are_dropped():
    person = sample_person(0, 4)
    body = Body(person)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        for protocol in sample_protocols(body, rng, "demo", views=(AXIAL_T2, SAGITTAL_T2)):
            cut = without_levels_above(protocol, body.truth.canal, 2)
            if protocol.view == SAGITTAL_T2:
                assert cut is protocol
                continue
            border = (body.truth.canal[1] + body.truth.canal[2]) / 2
            for block in cut.blocks:
                centers = block.center + block.offsets[:, None] * block.normal
                assert np.all((centers - border) @ block.normal <= 1e-6)
            assert 0 < n_slices(cut) < n_slices(protocol)
