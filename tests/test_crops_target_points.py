"""The 25 points: planted landmarks come back in LPS mm with their slice, left is left, estimates are marked."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_crops_extraction import CANAL, SCANS, blob, discs, series, stack

from lumbar_utils.crops.synthetic_crops import scan_person
from lumbar_utils.crops.target_points import (
    ESTIMATED,
    HEADS,
    TARGET_COLUMNS,
    TargetConfig,
    TargetNetworks,
    TargetPoints,
    locate_targets,
    shipped_networks,
)
from lumbar_utils.errors import DataError
from lumbar_utils.labels import AXIAL_T2, CONDITIONS, N_LEVELS, SAGITTAL_T1, SAGITTAL_T2
from lumbar_utils.localization import read_any_points, write_points
from lumbar_utils.phantom.anatomy import Body
from lumbar_utils.phantom.disease import sample_person
from lumbar_utils.studies.data import Study

OFFSETS = shipped_networks().offsets
LEFT_FORAMEN, RIGHT_FORAMEN = np.array([15.0, -6, 5]), np.array([-17.0, -5, 4])
LEFT_RECESS, RIGHT_RECESS = np.array([9.0, -5, 1]), np.array([-10.0, -4, -1])


class BrightSpots(torch.nn.Module):
    """Finds bright spots: on T1 left and right by the place along the crop, on axial slices by the column."""

    def __init__(self, view):
        super().__init__()
        self.config = TargetConfig(view)

    def forward(self, x):
        own = torch.nn.functional.avg_pool2d(x[:, 1:2], 2) * 25
        away = torch.linspace(-1, 1, own.shape[2])[:, None] if self.config.view == SAGITTAL_T1 else 0.0
        own = own - 20 * torch.as_tensor(away) ** 2  # spots of the discs above and below are in the box, too
        along = x[:, 3:4, ::2, ::2]
        if self.config.view == SAGITTAL_T1:
            return torch.cat([own - 60 * (along < 0.5), own - 60 * (along > 0.5)], 1) - 8
        column = torch.linspace(-1, 1, own.shape[-1]).expand_as(own)
        beside = [(column.abs() > 0.13), (column < 0.13), (column > -0.13)]
        return torch.cat([own - 60 * away for away in beside], 1) - 8


PLANTED = TargetNetworks({view: BrightSpots(view) for view in HEADS}, OFFSETS)


@pytest.mark.parametrize("scan", ["straight", "oblique and reversed"])
def test_planted_points_come_back_with_their_slices_whatever_the_scan(scan):
    spots = {
        SAGITTAL_T1: [c + o for c in CANAL for o in (LEFT_FORAMEN, RIGHT_FORAMEN)],
        AXIAL_T2: [c + o for c in CANAL for o in (LEFT_RECESS, RIGHT_RECESS)],
    }
    scans = {view: stack(view, blob(*spots[view], sigma=2.5), step=3.5, **SCANS[scan]) for view in spots}
    study = Study("7", tuple(series(view, item, series_id=view) for view, item in scans.items()), ())
    found = locate_targets(study, discs(), PLANTED)
    offsets = (LEFT_FORAMEN, RIGHT_FORAMEN, LEFT_RECESS, RIGHT_RECESS)
    for condition, offset in enumerate(offsets, 1):
        truth = CANAL + offset
        assert np.linalg.norm(found.places[condition] - truth, axis=1).max() < 1.5, CONDITIONS[condition]
        view = SAGITTAL_T1 if condition < 3 else AXIAL_T2
        own = slice(5 * condition, 5 * condition + 5)
        assert set(found.series_ids[own]) == {view}
        nearest = scans[view].geometry.nearest_slice(found.places[condition])
        assert list(found.instance_numbers[own]) == [scans[view].instance_numbers[i] for i in nearest]
    assert not any(ESTIMATED in flag for flag in found.flags)


def phantom(index=0, seed=77, views=(SAGITTAL_T2, SAGITTAL_T1, AXIAL_T2), mirror=False, **changes):
    """A body, a study of it, and canal points beside the true ones."""
    person = replace(sample_person(index, seed), **changes)
    body = Body(person.mirrored() if mirror else person)
    study, points = scan_person(body, np.random.default_rng([seed, index]), views)
    return body, study, points


def test_the_shipped_networks_find_the_points_of_unseen_phantoms():
    errors, slices = [], []
    for index in range(3):
        body, study, points = phantom(index)
        found = locate_targets(study, points)
        errors.append(np.linalg.norm(found.places - body.truth.places, axis=-1)[1:])
        (t1,) = study.by_view(SAGITTAL_T1)[0].stacks
        true = t1.geometry.nearest_slice(body.truth.places[1:3].reshape(-1, 3))
        slices.append(np.array(found.instance_numbers[5:15]) == np.array(t1.instance_numbers)[true])
    assert np.median(errors) < 2 and np.mean(slices) > 0.65


@pytest.mark.parametrize("mirror", [False, True])
def test_left_is_left(mirror):
    body, study, points = phantom(4, mirror=mirror)
    found = locate_targets(study, points).places
    for left, right in ((1, 2), (3, 4)):
        assert np.all(found[left, :, 0] > found[right, :, 0] + 8)
        own = np.linalg.norm(found[left] - body.truth.places[left], axis=1)
        assert np.all(own < np.linalg.norm(found[left] - body.truth.places[right], axis=1))


def test_a_canal_point_beside_the_canal_is_moved_into_it_along_no_other_way():
    """By axial slices, or where there are none by the foramina."""
    for views in ((SAGITTAL_T2, AXIAL_T2), (SAGITTAL_T2, SAGITTAL_T1)):
        body, study, _ = phantom(2, views=views)
        beside = body.truth.canal + np.array([7.0, 0, 0])
        start = replace(phantom(2)[2], points=beside)
        found = locate_targets(study, start).discs
        assert np.abs(found.points - body.truth.canal)[:, 0].max() < 3.0
        assert np.abs(((found.points - beside) * start.tangents()).sum(axis=1)).max() < 0.5


@pytest.mark.parametrize("views", [(), (SAGITTAL_T2,), (SAGITTAL_T2, AXIAL_T2)])
def test_what_no_scan_shows_is_estimated_from_the_canal_and_marked(views):
    body, study, points = phantom(1, views=(SAGITTAL_T2, SAGITTAL_T1, AXIAL_T2))
    study = Study(study.study_id, tuple(s for s in study.series if s.view in views))
    found = locate_targets(study, points)
    for view, conditions in ((SAGITTAL_T1, (1, 2)), (AXIAL_T2, (3, 4))):
        if view in views:
            continue
        for target in (5 * c + level for c in conditions for level in range(N_LEVELS)):
            assert found.flags[target].endswith(ESTIMATED) and found.confidence[target] <= 0.3
            assert found.series_ids[target] == "" and found.instance_numbers[target] is None
        errors = np.linalg.norm(found.places - body.truth.places, axis=-1)[list(conditions)]
        assert errors.max() < 12


def test_a_table_comes_back_and_other_commands_take_its_canal_points(tmp_path):
    _, study, points = phantom(0, views=(SAGITTAL_T2, SAGITTAL_T1))
    found = locate_targets(study, points)
    path = write_points(tmp_path / "points.csv", [found])
    table = pd.read_csv(path, dtype={"study_id": str, "series_id": str})
    assert tuple(table.columns) == TARGET_COLUMNS and len(table) == 25
    again = TargetPoints.from_frame(table.sample(frac=1, random_state=0))
    assert np.abs(again.points - found.points).max() < 1e-3
    same = ("study_id", "series_ids", "instance_numbers", "flags")
    assert [getattr(again, name) for name in same] == [getattr(found, name) for name in same]
    canal = read_any_points(path)[found.study_id]
    assert np.abs(canal.points - found.discs.points).max() < 1e-3 and canal.flags == found.discs.flags
    with pytest.raises(DataError, match="25"):
        TargetPoints.from_frame(table.iloc[:-1])


def test_networks_that_are_not_there_are_named(tmp_path):
    with pytest.raises(DataError, match="no networks"):
        TargetNetworks.load(tmp_path)
