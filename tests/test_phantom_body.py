"""The phantom's body and scanner: truth lies where it says, disease shows where it should, mirrors mirror."""

from dataclasses import replace

import numpy as np
import pytest

from lumbar_utils.errors import DataError
from lumbar_utils.labels import AXIAL_T2, LEVELS, SAGITTAL_T1, SAGITTAL_T2, target_index
from lumbar_utils.phantom.anatomy import build_body
from lumbar_utils.phantom.disease import sample_person
from lumbar_utils.phantom.scanner import acquire, finder_protocol, sample_protocols
from lumbar_utils.phantom.signal import Sequence, tissue_signal
from lumbar_utils.phantom.tissue import Tissue

L3_L4 = LEVELS.index("l3_l4")


def healthy(index: int = 3, seed: int = 5, **changes):
    person = sample_person(index, seed)
    plain = dict(
        degrees=np.full(25, 0.1), degeneration=np.full(5, 0.1), bulge_mm=np.zeros(5), modic=np.zeros(5, dtype=int),
        listhesis_mm=np.zeros(5), haemangioma=-1, scoliosis_degrees=0.0,
    )  # fmt: skip
    return replace(person, **{**plain, **changes})


def with_degree(condition: str, value: float):
    degrees = np.full(25, 0.1)
    degrees[target_index(condition, L3_L4)] = value
    return build_body(healthy(degrees=degrees))


def ball(center: np.ndarray, radius: float, step: float = 0.8) -> np.ndarray:
    line = np.arange(-radius, radius + step / 2, step)
    grid = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1)
    return center + grid[np.linalg.norm(grid, axis=-1) <= radius]


def share(body, points, *tissues) -> float:
    return float(np.isin(body.tissue_at(points), [int(t) for t in tissues]).mean())


def test_straightened_coordinates_are_invertible():
    spine = build_body(sample_person(1, 2)).spine
    rng = np.random.default_rng(0)
    s = rng.uniform(60, spine.curve.length - 70, 400)
    u, v = rng.uniform(-25, 25, 400), rng.uniform(-40, 25, 400)
    back = np.stack(spine.curve.project(spine.curve.place(s, u, v)), axis=1)
    assert np.abs(back - np.stack([s, u, v], axis=1)).max() < 0.05


@pytest.mark.parametrize("index", range(4))
def test_truth_is_where_the_tissue_is(index):
    body = build_body(healthy(index))
    truth = body.truth
    for level in range(5):
        assert share(body, ball(truth.centre[level], 1.5), Tissue.NUCLEUS, Tissue.ANNULUS) > 0.9
        assert share(body, ball(truth.canal[level], 1.5), Tissue.CSF, Tissue.ROOT) > 0.95
        inward = (truth.centre[level] - truth.posterior[level]) / np.linalg.norm(
            truth.centre[level] - truth.posterior[level]
        )
        assert body.tissue_at(truth.posterior[level] + 1.2 * inward) in (Tissue.ANNULUS, Tissue.NUCLEUS, Tissue.CORTEX)
        assert body.tissue_at(truth.posterior[level] - 1.0 * inward) not in (Tissue.ANNULUS, Tissue.NUCLEUS)
        up, down = (truth.centre[level] + sign * 14 * truth.normal[level] for sign in (1, -1))
        assert share(body, ball(up, 1.5), Tissue.MARROW, Tissue.FATTY_MARROW) > 0.8
        assert share(body, ball(down, 1.5), Tissue.MARROW, Tissue.FATTY_MARROW) > 0.8
        for side in (0, 1):
            fat_or_root = share(body, ball(truth.foramen[level, side], 2), Tissue.EPIDURAL_FAT, Tissue.ROOT, Tissue.FAT)
            assert fat_or_root > 0.8
    assert np.all(truth.foramen[:, 0, 0] > truth.foramen[:, 1, 0]), "patient's left is +x"
    assert np.all(np.diff(truth.centre[:, 2]) < 0)
    assert np.all((truth.posterior - truth.centre)[:, 1] > 8)


def test_disc_planes_follow_lordosis_and_scoliosis():
    body = build_body(healthy(scoliosis_degrees=18.0))
    for level in range(5):
        center, normal = body.truth.centre[level], body.truth.normal[level]
        left = np.array([1.0, 0.0, 0.0]) - normal[0] * normal
        left /= np.linalg.norm(left)
        front = np.cross(normal, left)
        for way in (left, -left, front, -front):
            assert share(body, ball(center + 9 * way, 1.2), Tissue.NUCLEUS, Tissue.ANNULUS) > 0.8
    leans = body.truth.normal[:, 0]
    assert leans.max() - leans.min() > np.sin(np.radians(10)), "convex to the left: the upper discs lean to the right"
    assert leans[0] < leans[-1]


def test_mirrored_person_gives_the_mirrored_body():
    person = sample_person(8, 11)
    body, mirrored = build_body(person), build_body(person.mirrored())
    flip = np.array([-1.0, 1.0, 1.0])
    points = np.random.default_rng(1).uniform([-70, -90, -150], [70, 70, 130], (20000, 3))
    assert np.array_equal(body.tissue_at(points), mirrored.tissue_at(points * flip))
    for name in ("centre", "posterior", "canal", "normal"):
        assert np.allclose(getattr(body.truth, name), getattr(mirrored.truth, name) * flip)
    for name in ("foramen", "recess"):
        assert np.allclose(getattr(body.truth, name), getattr(mirrored.truth, name)[:, ::-1] * flip)


def test_canal_degree_takes_the_csf_away():
    shares = [
        share(body := with_degree("spinal_canal_stenosis", d), ball(body.truth.canal[L3_L4], 8), Tissue.CSF)
        for d in (0.2, 1.0, 1.5, 2.0, 2.8)
    ]
    assert np.all(np.diff(shares) < 0), shares
    assert shares[0] - shares[2] > 0.08 and shares[2] - shares[4] > 0.08, shares


@pytest.mark.parametrize(
    ("condition", "name", "side"),
    [
        ("left_neural_foraminal_narrowing", "foramen", 0),
        ("right_neural_foraminal_narrowing", "foramen", 1),
        ("left_subarticular_stenosis", "recess", 0),
        ("right_subarticular_stenosis", "recess", 1),
    ],
)
def test_side_degrees_take_fat_away_on_their_side_only(condition, name, side):
    reference = build_body(healthy()).truth
    here, there = getattr(reference, name)[L3_L4, side], getattr(reference, name)[L3_L4, 1 - side]
    bright = (Tissue.EPIDURAL_FAT, Tissue.CSF, Tissue.FAT)
    degrees = (0.2, 1.0, 1.5, 2.0, 2.8)
    bodies = [with_degree(condition, d) for d in degrees]
    shares = [share(b, ball(here, 6), *bright) for b in bodies]
    others = [share(b, ball(there, 6), *bright) for b in bodies]
    assert np.all(np.diff(shares) < 0.005), shares
    assert shares[0] - shares[2] > 0.08 and shares[2] - shares[4] > 0.06, shares
    assert np.ptp(others) < 0.35 * np.ptp(shares), (shares, others)


def test_same_generator_same_pixels_and_geometry():
    body = build_body(sample_person(2, 4))
    images = []
    for _ in range(2):
        rng = np.random.default_rng(9)
        images.append([acquire(body, p, rng) for p in sample_protocols(body, rng)])
    for first, second in zip(*images, strict=True):
        for (g1, p1), (g2, p2) in zip(first, second, strict=True):
            assert p1.dtype == np.uint16 and p1.shape == (len(g1), *g1.shape)
            assert np.array_equal(p1, p2) and np.array_equal(g1.positions, g2.positions)


def test_planes_cover_all_levels_in_the_right_orientation():
    body = build_body(sample_person(5, 4))
    protocols = sample_protocols(body, np.random.default_rng(0), "rsna")
    assert [p.view for p in protocols] == [SAGITTAL_T2, SAGITTAL_T1, AXIAL_T2]
    for protocol in protocols:
        main = 2 if protocol.view == AXIAL_T2 else 0
        for block in protocol.blocks:
            assert np.abs(block.normal).argmax() == main
            assert block.row_cosine[1 if main == 0 else 0] > 0.8
    sagittal = next(p for p in protocols if p.view == SAGITTAL_T2)
    geometry, pixels = acquire(
        body, replace(sagittal, reconstructed=(128, 128), acquired=(96, 96)), np.random.default_rng(1)
    )[0]
    assert pixels.shape[1:] == (128, 128)
    voxels = geometry.world_to_voxel(body.truth.canal)
    assert np.all((voxels[:, 1:] > 10) & (voxels[:, 1:] < 118))
    assert np.all(np.diff(voxels[:, 1]) > 5), "levels go down the image"


def test_image_is_where_the_geometry_says():
    body = build_body(healthy(6))
    rng = np.random.default_rng(2)
    protocol = replace(sample_protocols(body, rng, views=(AXIAL_T2,))[0], noise=0.0, ghost=0.0)
    csf = body.truth.canal[0]
    for scale in (1, 2):
        doubled = replace(protocol, reconstructed=tuple(scale * n for n in protocol.acquired))
        distance = []
        for geometry, pixels in acquire(body, doubled, rng):
            k = int(geometry.nearest_slice(csf))
            points = geometry.voxel_to_world(
                np.stack(
                    np.meshgrid([k], np.arange(geometry.shape[0]), np.arange(geometry.shape[1]), indexing="ij"), -1
                )
            )
            near = (
                np.linalg.norm((points - csf)[0] @ np.stack([geometry.row_cosine, geometry.column_cosine], 1), axis=-1)
                < 14
            )
            if abs((geometry.positions[k] - csf) @ geometry.normal) > 3:
                continue
            weight = np.where(near, pixels[k].astype(float), 0)
            weight = np.maximum(weight - 0.6 * weight.max(), 0)
            centroid = (points[0] * weight[..., None]).sum((0, 1)) / weight.sum()
            distance.append(abs((centroid - csf) @ geometry.row_cosine))
        assert distance and min(distance) < 1.0


def test_signal_equations():
    t2 = tissue_signal(Sequence(3500, 100))
    assert t2[Tissue.CSF] > t2[Tissue.NUCLEUS] > t2[Tissue.MUSCLE] > t2[Tissue.CORTEX]
    assert t2[Tissue.FAT] > 0.6 * t2[Tissue.CSF]
    t1 = tissue_signal(Sequence(600, 10))
    assert t1[Tissue.FAT] > t1[Tissue.MARROW] > t1[Tissue.MUSCLE] > t1[Tissue.CSF]
    stir = tissue_signal(Sequence(4000, 60, 160))
    assert stir[Tissue.FAT] < 0.25 * stir[Tissue.CSF]
    expected = 1.0 * (1 - np.exp(-3500 / 4000)) * np.exp(-100 / 1500)
    assert t2[Tissue.CSF] == pytest.approx(expected, rel=1e-5)


def test_unknown_names_are_refused():
    body = build_body(sample_person(0, 0))
    with pytest.raises(DataError, match="unknown phantom profile 'tiny'"):
        sample_protocols(body, np.random.default_rng(0), "tiny")
    with pytest.raises(DataError, match="unknown view"):
        sample_protocols(body, np.random.default_rng(0), views=("Coronal T2",))


def test_finder_material_is_small_and_contains_the_discs():
    body = build_body(sample_person(7, 1))
    rng = np.random.default_rng(3)
    for _ in range(3):
        geometry, pixels = acquire(body, finder_protocol(body, rng), rng)[0]
        assert len(geometry) == 5 and max(pixels.shape) < 300
        assert pixels.std() > 0
    randomised = sample_protocols(body, rng, views=(SAGITTAL_T2, SAGITTAL_T1), randomise=True)
    assert [p.view for p in randomised] == [SAGITTAL_T2, SAGITTAL_T1]
