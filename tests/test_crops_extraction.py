"""Crops: a landmark planted in the patient lands where the crop's grid says, however the scan was made."""

import json
import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lumbar_utils.crops.extraction import LATERAL_AXIS, CropSpec, StudyCrops, extract_crops
from lumbar_utils.dicom.series import Series, Stack
from lumbar_utils.errors import DataError
from lumbar_utils.geometry import StackGeometry
from lumbar_utils.labels import AXIAL_T2, N_LEVELS, SAGITTAL_T1, SAGITTAL_T2, VIEWS
from lumbar_utils.localization import DiscPoints
from lumbar_utils.studies.study import Study

CANAL = np.array([[2.0, 10 + 3 * np.cos(i), 70 - 36.0 * i] for i in range(N_LEVELS)])
SPEC = CropSpec(shapes={SAGITTAL_T2: (10, 56, 56), AXIAL_T2: (10, 56, 56), SAGITTAL_T1: (24, 56, 56)})


def discs(points=CANAL):
    return DiscPoints(
        study_id="7", series_id="1", points=points, confidence=np.ones(5), flags=("",) * 5, source="truth"
    )


def stack(view, body, *, tilt=(0.0, 0.0, 0.0), reverse=False, center=(2, 10, -2), n=None, step=4.0, seed=0, x=0.0):
    """Scan an analytic body (a function of LPS mm) in a view, tilted by degrees about x, y, z."""
    rotation = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix()
    if view == AXIAL_T2:
        row, column, normal = rotation.T
        n, shape, spacing = n or 52, (220, 240), (0.7, 0.7)
    else:
        normal, row, negative = rotation.T
        column, n, shape, spacing = -negative, n or 25, (330, 240), (0.75, 0.75)
    offsets = (np.arange(n) - (n - 1) / 2) * step + np.random.default_rng(seed).uniform(-0.4, 0.4, n)
    corner = -row * spacing[1] * (shape[1] - 1) / 2 - column * spacing[0] * (shape[0] - 1) / 2
    positions = np.asarray(center) + [x, 0, 0] + offsets[:, None] * normal + corner
    if np.cross(row, column) @ normal < 0:
        positions = positions[::-1]
    if reverse:  # the scanner ran the other way: columns from right to left, slices in the opposite order
        positions = (positions + row * spacing[1] * (shape[1] - 1))[::-1]
        row = -row
    geometry = StackGeometry(positions, row, column, spacing, shape)
    index = np.stack(np.meshgrid(*(np.arange(k) for k in (n, *shape)), indexing="ij"), -1)
    pixels = body(geometry.voxel_to_world(index)).astype(np.float32)
    return Stack(pixels, geometry, tuple(range(1, n + 1)), tuple(f"{i}.dcm" for i in range(1, n + 1)))


def series(view, *stacks, series_id="1"):
    return Series(
        study_id="7", series_id=series_id, view=view, stacks=tuple(stacks), description="", header={}, issues=()
    )


def blob(*centres, sigma=4.0):
    def body(points):
        return sum(1000 * np.exp(-((points - c) ** 2).sum(-1) / (2 * sigma**2)) for c in centres)

    return body


def centroid(crops, view, level):
    weights = np.clip(crops.images[view][level].astype(np.float64), 0.02, None) - 0.02
    index = np.stack(np.meshgrid(*(np.arange(n) for n in weights.shape), indexing="ij"), -1)
    return (index * weights[..., None]).sum((0, 1, 2)) / weights.sum()


SCANS = {
    "straight": dict(),
    "reversed": dict(reverse=True),
    "oblique": dict(tilt=(9, -7, 5)),
    "oblique and reversed": dict(tilt=(-9, 6, -5), reverse=True),
}


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("side", [-1, 1])
def test_a_landmark_lands_on_its_voxel(view, scan, side):
    """To 0.5 mm in every view, whatever the slice order, obliquity or side."""
    level, offset = 2, np.array([side * 4.0, -9.0, 3.0])
    study = Study("7", (series(view, stack(view, blob(CANAL[level] + offset, sigma=3.0), **SCANS[scan])),), ())
    crops = extract_crops(study, discs(), SPEC)
    grid = crops.grid(view, level)
    found = grid.voxel_to_world(centroid(crops, view, level))
    assert np.linalg.norm(found - (CANAL[level] + offset)) < 0.5
    if "tilt" not in SCANS[scan]:  # then the scan's directions are the patient's, whichever way it ran
        axes = np.array([[0, 0, -1], [0, 1, 0], [1, 0, 0]] if view == AXIAL_T2 else [[1, 0, 0], [0, 0, -1], [0, 1, 0]])
        expected = axes @ offset / grid.spacing + (np.array(SPEC.shapes[view]) - 1) / 2
        assert np.abs((centroid(crops, view, level) - expected) * grid.spacing).max() < 0.5


def asymmetric(points):
    """A body without symmetry, smooth enough for 4 mm slices."""
    x, y, z = np.moveaxis(points, -1, 0)
    return 500 + 3 * x + 0.05 * x * y + 100 * np.sin(x / 11 + y / 9) * np.cos(z / 23) + y


def test_a_mirrored_body_gives_mirrored_crops():
    def mirrored(points):
        return asymmetric(points * [-1, 1, 1])

    points = CANAL * [0, 1, 1]
    for view in VIEWS:
        one, other = (
            extract_crops(
                Study("7", (series(view, stack(view, body, center=(0, 10, -2), reverse=reverse)),), ()),
                discs(points),
                SPEC,
            )
            for body, reverse in ((asymmetric, False), (mirrored, True))
        )
        flipped = np.flip(other.images[view], axis=LATERAL_AXIS[view] + 1).astype(float)
        same = one.covered[view] & np.flip(other.covered[view], axis=LATERAL_AXIS[view] + 1)
        assert same.mean() > 0.9
        assert np.abs(one.images[view].astype(float) - flipped)[same].mean() < 0.01
        assert np.abs(one.images[view].astype(float) - other.images[view])[same].mean() > 0.1


def test_outside_the_scan_is_marked():
    short = stack(AXIAL_T2, lambda p: 500 + p[..., 1], n=12, center=(2, 10, CANAL[2, 2]))
    crops = extract_crops(Study("7", (series(AXIAL_T2, short),), ()), discs(), SPEC)
    assert crops.covered[AXIAL_T2][2].all()
    assert not crops.covered[AXIAL_T2][0].any()
    assert crops.sources[AXIAL_T2][0] is None
    assert crops.missing == (SAGITTAL_T2, SAGITTAL_T1)
    assert any("no scan shows l1_l2" in issue for issue in map(str, crops.issues))
    assert (crops.images[AXIAL_T2][~crops.covered[AXIAL_T2]] == 0).all()


def test_each_disc_takes_the_axial_stack_that_lies_in_its_plane():
    points = CANAL.copy()
    points[:, 1] = 10
    straight = stack(AXIAL_T2, asymmetric, tilt=(30, 0, 0))
    block = stack(AXIAL_T2, asymmetric, n=6, center=points[2])
    crops = extract_crops(Study("7", (series(AXIAL_T2, straight, block),), ()), discs(points), SPEC)
    assert crops.sources[AXIAL_T2][2].stack == 1
    assert crops.sources[AXIAL_T2][2].angle_degrees < 5
    assert crops.sources[AXIAL_T2][0].stack == 0
    assert len(crops.sources[AXIAL_T2][2].instance_numbers) == 6


def test_of_two_series_the_one_that_shows_the_disc_is_taken():
    upper = series(AXIAL_T2, stack(AXIAL_T2, asymmetric, n=20, center=points_mean(0, 1)), series_id="upper")
    lower = series(AXIAL_T2, stack(AXIAL_T2, asymmetric, n=20, center=points_mean(3, 4)), series_id="lower")
    crops = extract_crops(Study("7", (upper, lower), ()), discs(), SPEC)
    assert crops.sources[AXIAL_T2][0].series_id == "upper"
    assert crops.sources[AXIAL_T2][4].series_id == "lower"


def points_mean(*levels):
    return CANAL[list(levels)].mean(axis=0)


@pytest.mark.parametrize("gain", [0.01, 1.0, 700.0])
def test_intensities_do_not_depend_on_the_scanner_scale(gain):
    scan = stack(SAGITTAL_T2, lambda p: gain * asymmetric(p) + 3 * gain)
    image = extract_crops(Study("7", (series(SAGITTAL_T2, scan),), ()), discs(), SPEC).images[SAGITTAL_T2]
    low, high = np.percentile(image, [1, 99])
    assert abs(low) < 0.02 and abs(high - 1) < 0.02


def test_saved_crops_come_back_whole(tmp_path):
    study = Study("7", (series(SAGITTAL_T2, stack(SAGITTAL_T2, asymmetric, reverse=True)),), ())
    crops = extract_crops(study, discs(), SPEC)
    back = StudyCrops.load(crops.save(tmp_path / "7.npz"))
    for view in VIEWS:
        np.testing.assert_array_equal(back.images[view], crops.images[view])
        np.testing.assert_array_equal(back.covered[view], crops.covered[view])
        np.testing.assert_array_equal(back.axes[view], crops.axes[view])
    assert back.sources == crops.sources
    assert back.issues == crops.issues and back.spec == crops.spec
    assert not list(tmp_path.glob(".*"))


def test_a_scan_that_falls_between_coarse_samples_shows_nothing():
    """Two slices at the edge of a box whose only layer of samples lies in its middle."""
    edge = stack(SAGITTAL_T2, asymmetric, n=2, x=12.0)
    spec = CropSpec(shapes={view: (1, 16, 16) for view in VIEWS})
    crops = extract_crops(Study("7", (series(SAGITTAL_T2, edge),), ()), discs(), spec)
    assert crops.sources[SAGITTAL_T2] == (None,) * N_LEVELS and SAGITTAL_T2 in crops.missing


def test_crops_show_themselves():
    short = stack(AXIAL_T2, lambda p: 500 + p[..., 1], n=12, center=(2, 10, CANAL[2, 2]))
    shown = extract_crops(Study("7", (series(AXIAL_T2, short),), ()), discs(), SPEC)._repr_html_()
    cells = re.findall(r">([^<>]+)</t[dh]>", shown)
    assert cells[cells.index("L3/L4") :][:4] == ["L3/L4", "no scan", "100%", "no scan"]
    assert "Axial T2: no scan shows l1_l2" in shown


def test_bad_crop_files_and_bad_points_are_refused(tmp_path):
    path = tmp_path / "7.npz"
    path.write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"7\.npz: not a readable file of crops"):
        StudyCrops.load(path)
    points = CANAL.copy()
    points[1, 1] = np.nan
    with pytest.raises((DataError, ValueError), match="finite"):
        extract_crops(Study("7", (), ()), discs(points), SPEC)


def first_voxel(value):
    def change(arrays):
        arrays["image_1"][0, 0, 0, 0] = value

    return change


def terabytes(arrays):
    shape = (5, 10**6, 10**3, 10**3)
    meta = json.loads(arrays["meta"].tobytes())
    meta["spec"]["shapes"] = {view: shape[1:] for view in VIEWS}
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    arrays["image_0"] = np.lib.stride_tricks.as_strided(np.zeros(1, np.float16), shape, (0, 0, 0, 0))


BROKEN = {
    "infinite": (first_voxel(np.inf), "finite.* got inf"),
    "no number": (first_voxel(np.nan), "finite.* got nan"),
    "far too large": (first_voxel(-60000), "intensities of Axial.* lie in .* got 60000"),
    "of another type": (lambda a: a.update(image_0=a["image_0"].astype(np.float32)), "image_0 is float32"),
    "of another shape": (lambda a: a.update(image_2=a["image_2"][:, 1:]), r"image_2 .* shape \(5, 23, 56, 56\)"),
    "of columns first": (lambda a: a.update(axes_0=np.asfortranarray(a["axes_0"])), "axes_0"),
    "without a view": (lambda a: a.pop("covered_1"), "covered_1"),
    "of terabytes": (terabytes, "image_0 .* does not fit a file of"),
    "with objects": (lambda a: a.update(meta=np.array([{}], dtype=object)), "meta is object"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_of_crops_is_named_before_memory_is_taken_for_it(tmp_path, kind):
    change, words = BROKEN[kind]
    study = Study("7", (series(SAGITTAL_T2, stack(SAGITTAL_T2, asymmetric)),), ())
    path = extract_crops(study, discs(), SPEC).save(tmp_path / "7.npz")
    with np.load(path) as data:
        arrays = dict(data)
    change(arrays)
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                header = np.lib.format.header_data_from_array_1_0(array)
                np.lib.format.write_array_header_1_0(file, header)
                file.write(array.tobytes() if array.nbytes < 2**30 else b"x" * 1000)
    with pytest.raises(DataError, match=rf"7\.npz: not a readable file of crops .*{words}"):
        StudyCrops.load(path)


def test_voxels_that_are_no_numbers_are_not_covered_and_said():
    scan = stack(SAGITTAL_T2, asymmetric)
    scan.pixels[:, ::40] = np.nan
    scan.pixels[12] = np.inf
    crops = extract_crops(Study("7", (series(SAGITTAL_T2, scan),), ()), discs(), SPEC)
    assert 0.5 < crops.covered[SAGITTAL_T2].mean() < 0.99 and np.ptp(crops.images[SAGITTAL_T2]) > 0.9
    assert any("voxels of the crops are not finite" in str(issue) for issue in crops.issues)


def test_crops_of_other_shapes_or_beyond_the_range_cannot_be_made():
    crops = extract_crops(Study("7", (), ()), discs(), SPEC)
    for name, value, words in (
        ("images", crops.images[AXIAL_T2][:, :, 1:], r"study 7: images of Axial T2 must be float16 of shape \(5, 10"),
        ("images", crops.images[AXIAL_T2].astype(np.float32), "got float32"),
        ("images", np.full_like(crops.images[AXIAL_T2], np.inf), "must be finite"),
        ("covered", crops.covered[AXIAL_T2].astype(np.uint8), "covered of Axial T2 must be bool"),
    ):
        with pytest.raises(DataError, match=words):
            replace(crops, **{name: {**getattr(crops, name), AXIAL_T2: value}})


def test_spec_json_round_trip_refuses_unknown_keys():
    assert CropSpec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC
    with pytest.raises(DataError, match="unknown keys"):
        CropSpec.from_json({"size": 3})
    with pytest.raises(DataError, match="shapes must give three positive numbers"):
        CropSpec(shapes={**SPEC.shapes, AXIAL_T2: (8, 0, 64)})


@pytest.mark.parametrize("tilt", [-55, -46, -40, 40, 46, 55])
def test_slices_of_a_steep_block_stay_the_first_axis(tilt):
    """Along a steep L5/S1 the slices lie nearer to a coronal plane, and are axial slices still."""
    level = 4
    block = stack(AXIAL_T2, asymmetric, tilt=(tilt, 0, 0), n=12, center=CANAL[level])
    crops = extract_crops(Study("7", (series(AXIAL_T2, block),), ()), discs(), SPEC)
    axes = crops.grid(AXIAL_T2, level).axes
    assert axes[0] @ block.geometry.normal == pytest.approx(np.sign(axes[0] @ block.geometry.normal))
    assert axes[0][2] < 0 and axes[1][1] > 0, "downward through the slices, backward in them"
    assert crops.covered[AXIAL_T2][level].mean() > 0.95
