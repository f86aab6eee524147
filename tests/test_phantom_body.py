"""The phantom's body and scanner: truth lies where it says, disease shows where it should, mirrors mirror."""

from dataclasses import replace

import numpy as np
import pytest

from lumbar_utils.errors import DataError
from lumbar_utils.labels import AXIAL_T2, LEVELS, SAGITTAL_T1, SAGITTAL_T2, target_index
from lumbar_utils.phantom import scanner
from lumbar_utils.phantom.anatomy import Body, Points
from lumbar_utils.phantom.canal import Section
from lumbar_utils.phantom.disease import sample_person
from lumbar_utils.phantom.person import L1, L5, S1
from lumbar_utils.phantom.protocol import localizer_protocol, sample_protocols
from lumbar_utils.phantom.randomisation import TRANSITION_RATE
from lumbar_utils.phantom.scanner import acquire
from lumbar_utils.phantom.signal import Sequence, tissue_signal
from lumbar_utils.phantom.surroundings import smooth_fields
from lumbar_utils.phantom.tissue import N_TISSUES, Canvas, Tissue

L3_L4 = LEVELS.index("l3_l4")


def healthy(index: int = 3, seed: int = 5, **changes):
    person = sample_person(index, seed)
    plain = dict(
        degrees=np.full(25, 0.1), degeneration=np.full(5, 0.1), bulge_mm=np.zeros(5), modic=np.zeros(5, dtype=int),
        listhesis_mm=np.zeros(5), haemangioma=-1, scoliosis_degrees=0.0, transition=0.0, fracture=np.zeros((7, 2)),
        schmorl_mm=np.zeros(7), herniation_mm=np.zeros(5),
    )  # fmt: skip
    return replace(person, **{**plain, **changes})


def with_degree(condition: str, value: float):
    degrees = np.full(25, 0.1)
    degrees[target_index(condition, L3_L4)] = value
    return Body(healthy(degrees=degrees))


def ball(center: np.ndarray, radius: float, step: float = 0.8) -> np.ndarray:
    line = np.arange(-radius, radius + step / 2, step)
    grid = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1)
    return center + grid[np.linalg.norm(grid, axis=-1) <= radius]


class TissueCanvas(Canvas):
    """Tissue numbers instead of signal: a tissue holds where its mask is above one half."""

    def paint(self, mask, tissue, texture=None):
        self.paint_mixture(mask, np.zeros_like(mask), tissue, tissue)

    def paint_mixture(self, mask, mix, first, second, texture=None):
        self.value = np.where(mask > 0.5, np.where(mix > 0.5, second, first), self.value)


def tissue_at(body: Body, points: np.ndarray) -> np.ndarray:
    """`Tissue` numbers (...) at LPS points (..., 3)."""
    fields = smooth_fields(body, body.to_own(points).reshape(-1, 3))
    canvas = TissueCanvas(fields["s"].shape, np.zeros(N_TISSUES), softness=0.5)
    body.paint({name: field.astype(np.float32) for name, field in fields.items()}, canvas)
    return canvas.value.reshape(np.shape(points)[:-1])


def share(body, points, *tissues) -> float:
    return float(np.isin(tissue_at(body, points), [int(t) for t in tissues]).mean())


def test_straightened_coordinates_are_invertible():
    spine = Body(sample_person(1, 2)).spine
    rng = np.random.default_rng(0)
    s = rng.uniform(60, spine.curve.length - 70, 400)
    u, v = rng.uniform(-25, 25, 400), rng.uniform(-40, 25, 400)
    back = np.stack(spine.curve.project(spine.curve.place(s, u, v)), axis=1)
    assert np.abs(back - np.stack([s, u, v], axis=1)).max() < 0.05


@pytest.mark.parametrize("index", range(4))
def test_truth_is_where_the_tissue_is(index):
    body = Body(healthy(index))
    truth = body.truth
    for level in range(5):
        assert share(body, ball(truth.centre[level], 1.5), Tissue.NUCLEUS, Tissue.ANNULUS) > 0.9
        assert share(body, ball(truth.canal[level], 1.5), Tissue.CSF, Tissue.ROOT, Tissue.CORD) > 0.95
        inward = (truth.centre[level] - truth.posterior[level]) / np.linalg.norm(
            truth.centre[level] - truth.posterior[level]
        )
        assert tissue_at(body, truth.posterior[level] + 1.2 * inward) in (Tissue.ANNULUS, Tissue.NUCLEUS, Tissue.CORTEX)
        assert tissue_at(body, truth.posterior[level] - 1.0 * inward) not in (Tissue.ANNULUS, Tissue.NUCLEUS)
        up, down = (truth.centre[level] + sign * 14 * truth.normal[level] for sign in (1, -1))
        assert share(body, ball(up, 1.5), Tissue.MARROW, Tissue.FATTY_MARROW) > 0.8
        assert share(body, ball(down, 1.5), Tissue.MARROW, Tissue.FATTY_MARROW) > 0.8
        for side in (0, 1):
            content = (Tissue.EPIDURAL_FAT, Tissue.ROOT, Tissue.FAT, Tissue.VEIN, Tissue.BLOOD)
            assert share(body, ball(truth.foramen[level, side], 2), *content) > 0.8
    assert np.all(truth.foramen[:, 0, 0] > truth.foramen[:, 1, 0]), "patient's left is +x"
    assert np.all(np.diff(truth.centre[:, 2]) < 0)
    assert np.all((truth.posterior - truth.centre)[:, 1] > 8)


def test_disc_planes_follow_lordosis_and_scoliosis():
    body = Body(healthy(scoliosis_degrees=18.0))
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


MARKED = dict(
    transition=-0.6, herniation_mm=np.full(5, 7.0), herniation_at_mm=np.array([5.0, -6, 4, 7, -3]),
    schmorl_mm=np.full(7, 4.0), marrow=np.full(8, 0.6), laminectomy=np.array([False, True, True, False, False]),
    scoliosis_degrees=20.0, pelvic_mass_mm=30.0, ascites=0.7, fused=1,
)  # fmt: skip


@pytest.mark.parametrize("changes", [{}, MARKED, {"transition": 0.7}], ids=["ordinary", "marked", "lumbarised"])
def test_mirrored_person_gives_the_mirrored_body(changes):
    person = replace(sample_person(8, 11), **changes)
    body, mirrored = Body(person), Body(person.mirrored())
    flip = np.array([-1.0, 1.0, 1.0])
    points = np.random.default_rng(1).uniform([-70, -90, -150], [70, 70, 130], (20000, 3))
    assert np.array_equal(tissue_at(body, points), tissue_at(mirrored, points * flip))
    for name in ("centre", "posterior", "canal", "normal", "chain"):
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


@pytest.mark.parametrize(("degree", "low", "high"), [(0.1, 130, 230), (1.0, 80, 140), (2.0, 45, 90), (2.8, 15, 70)])
def test_the_sac_has_the_area_that_readers_call_by_its_grade(degree, low, high):
    """Relative stenosis from 100 mm2, absolute from 75 mm2 (Schonstrom 1985); a third and two thirds lost (Lurie 2008).

    As in people, a narrow canal goes with narrow recesses and a bulging disc.
    """
    areas = []
    for index in range(12):
        degrees = np.full((5, 5), 0.1)
        degrees[0] = degree
        degrees[3:] = 0.8 * degree
        worn = {"bulge_mm": np.full(5, min(1.5 + degree, 3.5)), "sac_scale": 1.0}
        body = Body(healthy(index, degrees=degrees.ravel(), **worn))
        u, v = (
            grid.ravel().astype(np.float32) for grid in np.meshgrid(np.arange(-20, 20, 0.5), np.arange(-6, 34, 0.5))
        )
        s = np.full_like(u, body.spine.disc_middles[L1 + L3_L4])
        nothing = np.zeros_like(u)
        section = Section(body, Points(s, u, v, body.spine.index(s), nothing, nothing, nothing))
        areas.append((section.sac < 0).sum() * 0.25)
    assert low < np.median(areas) < high, areas


def test_fat_behind_the_sac_stays_when_the_canal_is_narrow():
    seen = []
    for index in range(12):
        degrees = np.full(25, 0.1)
        degrees[target_index("spinal_canal_stenosis", L3_L4)] = 2.6
        body = Body(healthy(index, degrees=degrees))
        at = float(body.spine.disc_middles[L1 + L3_L4])
        line = body.spine.place(at, 0.0, np.arange(2.0, 30.0, 0.5)) * body.mirror + body.origin
        tissue = tissue_at(body, line)
        seen.append((tissue == Tissue.EPIDURAL_FAT).mean() * 28)
    assert max(seen) > 6 and min(seen) < 3, "mm in the midline, from none to a wedge"


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
    reference = Body(healthy()).truth
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
    body = Body(sample_person(2, 4))
    images = []
    for _ in range(2):
        rng = np.random.default_rng(9)
        images.append([acquire(body, p, rng) for p in sample_protocols(body, rng)])
    for first, second in zip(*images, strict=True):
        for (g1, p1), (g2, p2) in zip(first, second, strict=True):
            assert p1.dtype == np.uint16 and p1.shape == (len(g1), *g1.shape)
            assert np.array_equal(p1, p2) and np.array_equal(g1.positions, g2.positions)


def test_planes_cover_all_levels_in_the_right_orientation():
    body = Body(sample_person(5, 4))
    protocols = sample_protocols(body, np.random.default_rng(0), "rsna")
    assert [p.view for p in protocols] == [SAGITTAL_T2, SAGITTAL_T1, AXIAL_T2]
    for protocol in protocols:
        main = 2 if protocol.view == AXIAL_T2 else 0
        for block in protocol.blocks:
            assert np.abs(block.normal).argmax() == main
            assert block.row_cosine[1 if main == 0 else 0] > 0.8
    sagittal = next(p for p in protocols if p.view == SAGITTAL_T2)
    geometry, pixels = acquire(
        body, replace(sagittal, reconstruction_matrix=(128, 128), acquisition_matrix=(96, 96)), np.random.default_rng(1)
    )[0]
    assert pixels.shape[1:] == (128, 128)
    voxels = geometry.world_to_voxel(body.truth.canal)
    assert np.all((voxels[:, 1:] > 10) & (voxels[:, 1:] < 118))
    assert np.all(np.diff(voxels[:, 1]) > 5), "levels go down the image"


def test_image_is_where_the_geometry_says():
    body = Body(healthy(6))
    rng = np.random.default_rng(2)
    protocol = replace(sample_protocols(body, rng, views=(AXIAL_T2,))[0], noise=0.0, ghost=0.0)
    csf = body.truth.canal[0]
    for scale in (1, 2):
        doubled = replace(protocol, reconstruction_matrix=tuple(scale * n for n in protocol.acquisition_matrix))
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
    body = Body(sample_person(0, 0))
    with pytest.raises(DataError, match="unknown phantom profile 'tiny'"):
        sample_protocols(body, np.random.default_rng(0), "tiny")
    with pytest.raises(DataError, match="unknown view"):
        sample_protocols(body, np.random.default_rng(0), views=("Coronal T2",))


def test_localizer_material_is_small_and_contains_the_discs():
    body = Body(sample_person(7, 1))
    rng = np.random.default_rng(3)
    for _ in range(3):
        geometry, pixels = acquire(body, localizer_protocol(body, rng), rng)[0]
        assert len(geometry) == 5 and max(pixels.shape) < 300
        assert pixels.std() > 0
    randomised = sample_protocols(body, rng, views=(SAGITTAL_T2, SAGITTAL_T1), randomise=True)
    assert [p.view for p in randomised] == [SAGITTAL_T2, SAGITTAL_T1]


CANAL = (Tissue.CSF, Tissue.ROOT, Tissue.CORD)


@pytest.mark.parametrize("index", range(6))
def test_the_chain_goes_from_the_thoracic_to_the_sacral_canal(index):
    truth = (body := Body(healthy(index))).truth
    assert truth.chain.shape == (8, 3)
    np.testing.assert_array_equal(truth.chain[2:7], truth.canal)
    assert np.all(np.diff(truth.chain[:, 2]) < 0)
    for point in truth.chain[:2]:
        assert share(body, ball(point, 1.5), *CANAL) > 0.95
    assert share(body, ball(truth.chain[7], 1.5), *CANAL, Tissue.EPIDURAL_FAT, Tissue.LIGAMENT) > 0.95


def test_transition_moves_l5_toward_the_sacrum_or_s1_toward_the_lumbar_spine():
    sacralised, plain, lumbarised = (Body(healthy(transition=t)).spine for t in (-0.7, 0.0, 0.7))
    assert sacralised.disc_halves[L5] < 0.7 * plain.disc_halves[L5]
    assert lumbarised.disc_halves[S1] > 2 * plain.disc_halves[S1]

    def bend(spine, disc):
        return np.degrees(spine.disc_angles[disc] - spine.disc_angles[disc + 1])

    assert np.degrees(np.ptp(sacralised.disc_angles[L5 - 1 : L5 + 1])) < np.degrees(
        np.ptp(plain.disc_angles[L5 - 1 : L5 + 1])
    )
    assert bend(lumbarised, L5) < bend(plain, L5), "the promontory has moved down"


def test_the_sacrum_is_as_curved_as_the_person_says():
    few, many = (Body(healthy(sacral_kyphosis_degrees=d)).spine.disc_angles for d in (30.0, 80.0))
    bends = [np.degrees(angles[L5] - angles[S1 + 3]) for angles in (few, many)]
    assert 50 * 0.6 < bends[1] - bends[0] < 50 * 1.1, "S1 to S4 without S5"


def test_pathology_is_where_it_was_planted():
    plain = Body(healthy())
    wedge = np.zeros((7, 2))
    wedge[4, 0] = 0.5  # L3
    broken = Body(healthy(fracture=wedge))
    bend = [b.spine.disc_angles[L1 + 1] - b.spine.disc_angles[L1 + 2] for b in (plain, broken)]
    assert np.degrees(bend[1] - bend[0]) > 12, "a wedge bends the spine forward"

    bulging = Body(healthy(herniation_mm=np.eye(5)[3] * 7.0, herniation_at_mm=np.zeros(5)))
    behind = plain.truth.posterior[3] + np.array([0, 3.5, 0])
    assert share(plain, ball(behind, 1), *CANAL) > 0.7 and share(bulging, ball(behind, 1), *CANAL) == 0

    open_back = Body(healthy(laminectomy=np.array([False, False, True, True, False])))
    hole = plain.truth.canal[2] + np.array([0, 22, -14])
    bone = (Tissue.MARROW, Tissue.CORTEX)
    assert share(plain, ball(hole, 8), *bone) > share(open_back, ball(hole, 8), *bone) + 0.2

    block = Body(healthy(fused=1))
    grown = share(block, ball(block.truth.centre[1], 12), Tissue.MARROW, Tissue.FATTY_MARROW)
    assert grown > share(plain, ball(plain.truth.centre[1], 12), Tissue.MARROW, Tissue.FATTY_MARROW) + 0.2

    ends = [np.argmax(b.spine.cord < 0.5) for b in (plain, Body(healthy(conus_shift_mm=40.0)))]
    assert ends[1] > ends[0]


def test_randomised_people_can_be_built_and_their_discs_are_in_order():
    transitional, in_canal, in_disc = 0, [], []
    for index in range(200):
        body = Body(person := sample_person(index, 31, randomise=True))
        truth, curve = body.truth, body.spine.curve
        for name in ("centre", "posterior", "canal", "normal", "foramen", "recess", "chain"):
            assert np.isfinite(getattr(truth, name)).all()
        assert np.all(np.diff(truth.chain[:, 2]) < -5) and np.all(np.diff(body.spine.disc_middles) > 3)
        assert np.all(np.diff(curve.z[: round(body.spine.disc_middles[S1] / 0.25)]) < 0)
        assert np.linalg.norm(np.diff(truth.chain, axis=0), axis=1).min() > 10
        in_canal.append(np.isin(tissue_at(body, truth.canal), [*CANAL, Tissue.EPIDURAL_FAT]))
        in_disc.append(np.isin(tissue_at(body, truth.centre), [Tissue.ANNULUS, Tissue.NUCLEUS]))
        transitional += person.transition != 0
    assert abs(transitional / 200 - TRANSITION_RATE) < 3 * np.sqrt(TRANSITION_RATE / 200)
    assert np.mean(in_canal) > 0.95 and np.mean(in_disc) > 0.98


def test_localizer_material_holds_the_five_discs_and_is_sometimes_beside_the_canal():
    aside, shapes = [], set()
    for index in range(60):
        rng = np.random.default_rng(index)
        body = Body(sample_person(index, 2, randomise=True))
        protocol = localizer_protocol(body, rng)
        block = protocol.blocks[0]
        down = (body.truth.canal - block.center) @ block.column_cosine
        assert np.abs(down).max() < protocol.fov_mm[0] / 2 - 3
        assert down.min() / protocol.fov_mm[0] + 0.5 > protocol.border[0], "no disc in an empty border"
        aside.append(np.abs((body.truth.canal - block.center) @ block.normal).mean())
        shapes.add(protocol.fov_mm[0] == protocol.fov_mm[1])
        assert 2.0 < protocol.thickness_mm < 6.5
    assert 0.1 < np.mean(np.array(aside) > 12) < 0.4
    assert shapes == {True, False}


def test_artefacts_are_planted_where_they_belong():
    image = np.zeros((40, 60), dtype=np.float32)
    image[20, 10] = 1
    ghost = scanner.add_ghosts(image, 0.1, 1, 0.25)
    assert ghost[20, 25] == pytest.approx(0.1) and ghost[20, 10] == 1
    edge = np.zeros((40, 60), dtype=np.float32)
    edge[-1] = 1
    assert scanner.fold_over(edge, 0.1, 0)[0].min() == 1
    full = np.ones((40, 60))
    scanner.blank_border(full, (0.1, 0, 0, 0.5))
    assert full[:4].max() == 0 and full[:, 30:].max() == 0 and full[4:, :30].min() == 1

    body, rng = Body(healthy()), np.random.default_rng(0)
    protocol = replace(sample_protocols(body, rng, views=(SAGITTAL_T2,))[0], noise=0.0, ghost=0.0)
    place = body.truth.centre[2]
    voided = replace(protocol, metal=((place, 12.0),))
    (geometry, plain), (_, dark) = (acquire(body, p, np.random.default_rng(0))[0] for p in (protocol, voided))
    k, row, column = np.rint(geometry.world_to_voxel(place)).astype(int)
    around = (k, slice(row - 2, row + 3), slice(column - 2, column + 3))
    assert dark[around].mean() < 0.2 * plain[around].mean()
    assert np.median(np.abs(dark[k].astype(float) - plain[k])) < 5


def test_lateral_slices_meet_ribs_above_and_the_iliac_wings_below():
    body = Body(healthy())
    curve, middles = body.spine.curve, body.spine.middles
    grid = np.stack(np.meshgrid(np.arange(46, 100, 2.0), np.arange(-60, 40, 2.0), np.arange(-14, 15, 2.0)), axis=-1)

    def bone_beside(vertebra):
        at = curve.place(middles[vertebra], 0.0, 0.0) + body.origin
        sides = [share(body, at + grid * [side, 1, 1], Tissue.MARROW) for side in (1, -1)]
        assert sides[0] == pytest.approx(sides[1], abs=0.05)
        return np.mean(sides)

    assert bone_beside(S1) > 0.05
    assert bone_beside(L1 - 2) > 0.002
    assert bone_beside(L1 + 2) == 0
