"""The localizer: geometry whatever the scan's order, joint decoding on planted maps, a tiny training that learns."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from scipy.spatial.transform import Rotation

from lumbar_utils.errors import DataError, LumbarError
from lumbar_utils.geometry import StackGeometry
from lumbar_utils.labels import LEVELS, SAGITTAL_T1, SAGITTAL_T2
from lumbar_utils.localization import (
    Augmentation,
    DiscLocalizer,
    DiscPoints,
    LocalizationError,
    LocalizerConfig,
    LocalizerTraining,
    complete_chain,
    evaluate_points,
    point_errors,
    read_points,
    read_reference,
    summary,
    train_localizer,
    train_on_samples,
    write_points,
)
from lumbar_utils.localization import training as training_module
from lumbar_utils.localization.augmentation import draw_window
from lumbar_utils.localization.calibration import cut_off, fit_localizer_calibration, locate_samples
from lumbar_utils.localization.decoding import ChainPrior, decode_chain
from lumbar_utils.localization.heat_maps import HeatMaps
from lumbar_utils.localization.localizer import T1_WEIGHT, LocalizerCalibration
from lumbar_utils.localization.network import CHAIN as NEIGHBOURS_TOO
from lumbar_utils.localization.network import SliceUNet, log_probability
from lumbar_utils.localization.points import LOW_CONFIDENCE_BELOW, fuse_series, with_low_confidence
from lumbar_utils.localization.preprocessing import sagittal_volume, series_volumes
from lumbar_utils.localization.samples import load_samples, sample_from_series
from lumbar_utils.localization.synthetic_samples import synthetic_samples
from lumbar_utils.localization.training import localizer_loss
from lumbar_utils.studies.study import CompetitionFolder, find_studies, load_study

CHAIN = np.array([[0, 5, 66], [1, 1, 34], [1, 0, 0], [0, 3, -34], [-1, 10, -64.0]])
SMALL = LocalizerConfig(pixel_mm=2.0, widths=(8, 16, 24, 32), chain=LEVELS)


@dataclass
class FakeStack:
    """The two fields of `dicom.Stack` that the localizer reads."""

    pixels: np.ndarray
    geometry: StackGeometry


@dataclass
class FakeSeries:
    stacks: tuple
    study_id: str = "7"
    series_id: str = "s"
    view: str = SAGITTAL_T2


@dataclass
class FakeStudy:
    series: tuple = ()
    study_id: str = "7"

    def by_view(self, view):
        return tuple(s for s in self.series if s.view == view)


def spine_value(at: np.ndarray, chain: np.ndarray) -> np.ndarray:
    """A toy spine at LPS points (..., 3): a bright canal, bright discs before it, a dark sacrum below."""
    upward = np.vstack([chain[0] + [[0, 0, 99], [0, 0, 66], [0, 0, 33]], chain])[::-1]
    y = np.interp(at[..., 2], upward[:, 2], upward[:, 1])
    x = np.interp(at[..., 2], upward[:, 2], upward[:, 0])
    value = 0.2 + 0.6 * (np.abs(at[..., 1] - y) < 7) * np.exp(-0.5 * ((at[..., 0] - x) / 5) ** 2)
    for point in upward:
        d = np.abs(at - point - [0, -22, 0])
        value = value + 0.5 * ((d[..., 0] < 22) & (d[..., 1] < 15) & (d[..., 2] < 5))
    d = np.abs(at - chain[4] - [0, -10, -30])
    return value - 0.2 * ((d[..., 0] < 30) & (d[..., 1] < 25) & (d[..., 2] < 20))


def render(chain, *, angles=(0, 0, 0), n=9, pixel=(1.6, 1.3), slice_mm=4.4, size=(136, 140), order="right_to_left"):
    """A toy sagittal stack; `order` may reverse the slices, or store rows from the back or columns swapped."""
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    along_row, along_column = turn @ [0, 1.0, 0], turn @ [0, 0, -1.0]
    if order == "left_to_right":
        along_row = -along_row
    if order == "transposed":
        along_row, along_column = along_column, along_row
        size, pixel = size[::-1], pixel[::-1]
    normal = np.cross(along_row, along_column)
    middle = np.mean(chain, axis=0) - (size[1] - 1) / 2 * pixel[1] * along_row
    middle = middle - (size[0] - 1) / 2 * pixel[0] * along_column
    gaps = np.full(n - 1, slice_mm) * (1 if order != "uneven" else np.linspace(0.8, 1.3, n - 1))
    steps = np.concatenate([[0], np.cumsum(gaps)])
    positions = middle + (steps - steps.mean())[:, None] * normal
    geometry = StackGeometry(positions, along_row, along_column, pixel, size)
    grid = np.moveaxis(np.indices((n, *size)), 0, -1)
    noise = np.random.default_rng(0).normal(0, 0.02, (n, *size))
    pixels = spine_value(geometry.voxel_to_world(grid), np.asarray(chain)) + noise
    return FakeStack((pixels * 900).astype(np.float32), geometry)


def random_chain(rng):
    z = np.concatenate([[0], -np.cumsum(rng.uniform(29, 38, 4))])
    y = 8 * np.cos(np.linspace(-1.2, 1.6, 5) + rng.normal(0, 0.2))
    x = np.linspace(-1, 1, 5) * rng.normal(0, 2)
    return np.stack([x, y, z - z.mean()], axis=1) + rng.normal(0, 5, 3)


@pytest.fixture(scope="session")
def toy_weights(shared_folder):
    """Folder of weights trained for seconds on two dozen toy spines, once for all pytest-xdist workers."""
    folder = shared_folder / "toy_localizer"
    with FileLock(str(folder) + ".lock"):
        if not (folder / "history.csv").exists():
            train_toy(folder)
    return folder


@pytest.fixture(scope="session")
def localizer(toy_weights):
    return DiscLocalizer.load(toy_weights)


def train_toy(folder):
    rng = np.random.default_rng(1)
    samples = []
    for _ in range(24):
        chain = random_chain(rng)
        series = FakeSeries((render(chain, angles=rng.normal(0, 3, 3)),))
        samples.append(sample_from_series(series, chain, SMALL.pixel_mm))
    settings = Augmentation(window=3, canvas=(128, 96), invert=0, curve=0)
    training = LocalizerTraining(steps=150, batch=3, learning_rate=4e-3, average=0.95, augmentation=settings)
    train_on_samples(samples, config=SMALL, training=training, progress=False).save(folder)


# --- points -----------------------------------------------------------------------------------------------------


def test_points_survive_a_file(tmp_path):
    one = DiscPoints("1", "11", CHAIN, [0.9, 0.8, 1, 0, 0.5], ("", "interpolated", "", "", ""), "localizer")
    other = DiscPoints("007", "12", CHAIN + 1.23456, np.ones(5))
    path = write_points(tmp_path / "deep" / "points.csv", [one, other])
    again = read_points(path)
    assert list(again) == ["1", "007"]
    assert np.allclose(again["007"].points, other.points, atol=1e-3)
    assert again["1"].flags == one.flags
    assert np.allclose(again["1"].confidence, one.confidence)
    assert [p.name for p in path.parent.iterdir()] == ["points.csv"]


def test_points_can_be_read_in_any_row_order_and_refuse_a_missing_level():
    frame = DiscPoints("1", "2", CHAIN, np.ones(5)).to_frame()
    assert np.allclose(DiscPoints.from_frame(frame.iloc[::-1]).points, CHAIN)
    with pytest.raises(DataError, match="one row for each"):
        DiscPoints.from_frame(frame.iloc[:4])
    with pytest.raises(DataError, match="lacks the columns"):
        DiscPoints.from_frame(frame.drop(columns="x"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"points": CHAIN[:4]}, "5 x 3"),
        ({"points": CHAIN * np.nan}, "5 x 3 finite"),
        ({"points": CHAIN[[0, 0, 2, 3, 4]]}, "l1_l2 and l2_l3 are the same place"),
        ({"confidence": [2, 1, 1, 1, 1]}, "in 0..1"),
        ({"source": "guess"}, "source must be one of"),
        ({"flags": ("",)}, "flags must be 5"),
    ],
)
def test_wrong_points_are_refused(change, words):
    values = {"study_id": "1", "series_id": "2", "points": CHAIN, "confidence": np.ones(5)} | change
    with pytest.raises(DataError, match=words):
        DiscPoints(**values)


def test_a_summary_of_nothing_found_is_nan_without_a_warning(recwarn):
    result = summary(evaluate_points({}, {"1": CHAIN}))
    assert result["studies_not_found"] == 1 and result["within_5mm"] == 0
    assert np.isnan(result["median_mm"]) and np.isnan(result["median_along_centred_mm"])
    assert np.isnan(summary(evaluate_points({}, {}))["within_5mm"])
    assert not recwarn.list


def test_tangents_point_to_the_feet_and_are_unit():
    tangents = DiscPoints("1", "2", CHAIN, np.ones(5)).tangents()
    assert np.allclose(np.linalg.norm(tangents, axis=1), 1)
    assert np.all(tangents[:, 2] < -0.8)


def test_gaps_are_filled_and_marked():
    points = CHAIN.copy()
    points[[1, 4]] = np.nan
    filled, flags = complete_chain(points)
    assert flags == ("", "interpolated", "", "", "extrapolated")
    assert np.linalg.norm(filled - CHAIN, axis=1).max() < 12
    assert np.linalg.norm(filled[1] - CHAIN[1]) < 4
    points[[0, 2]] = np.nan
    with pytest.raises(DataError, match="at least two"):
        complete_chain(points)


def test_disc_points_do_not_load_torch():
    code = "import sys; from lumbar_utils.localization import DiscPoints; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["right_to_left", "left_to_right", "transposed", "uneven"])
def test_volumes_are_anatomical_and_know_where_they_are(order):
    stack = render(CHAIN, angles=(4, -6, 8), order=order)
    volume = sagittal_volume(stack, 1.5)
    voxels = np.array([[0, 0, 0], [3.3, 20.25, 40], [8, 100, 90.5]])
    assert np.allclose(volume.to_voxel(volume.to_world(voxels)), voxels, atol=1e-6)
    origin, left, down, back = volume.to_world(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]]))
    assert (left - origin)[0] > 3.5
    assert np.isclose((down - origin)[2], -volume.spacing[0], atol=0.1)
    assert np.isclose((back - origin)[1], volume.spacing[1], atol=0.1)
    grid = np.moveaxis(np.indices(volume.pixels.shape), 0, -1)
    expected = spine_value(volume.to_world(grid), CHAIN)
    assert np.corrcoef(expected.ravel(), volume.pixels.ravel())[0, 1] > 0.95


def test_an_axial_stack_is_refused_with_its_name():
    geometry = StackGeometry([[0, 0, z] for z in range(5)], [1, 0, 0], [0, 1, 0], (1, 1), (128, 128))
    stack = FakeStack(np.ones((5, 128, 128), np.float32), geometry)
    with pytest.raises(LocalizationError, match="study 7, series s: not a sagittal stack"):
        sample_from_series(FakeSeries((stack,)), CHAIN, 1.5)


# --- decoding ---------------------------------------------------------------------------------------------------

SPACING, OFFSETS = (3.0, 3.0), np.arange(7) * 4.4
PLANTED = np.array([[13.0, 40, 90], [13.5, 74, 86], [13.2, 108, 85], [12.9, 142, 88], [12.5, 172, 97]])
"""mm through the plane, downward, backward."""


def blob(place, shape):
    """Mass 1 around a place in mm, on maps of a level."""
    rows, columns = ((np.arange(size) + 0.5) * step for size, step in zip(shape, SPACING, strict=True))
    value = np.exp(-0.5 * ((OFFSETS - place[0]) / 4) ** 2)[:, None, None]
    value = value * np.exp(-0.5 * ((rows - place[1]) / 4) ** 2)[:, None]
    value = value * np.exp(-0.5 * ((columns - place[2]) / 4) ** 2)
    return value / value.sum()


def planted_maps(masses, levels=5, shape=(80, 60)):
    """Maps from a list of (level, place in mm, mass); what is left of a level's mass is "not in view"."""
    maps = np.zeros((7, levels, *shape))
    for level, place, mass in masses:
        maps[:, level] += mass * blob(place, shape)
    return HeatMaps(maps, np.clip(1 - maps.sum(axis=(0, 2, 3)), 0, 1), OFFSETS, SPACING)


def decoded(masses):
    chain = decode_chain(planted_maps(masses))
    mm = np.stack(
        [
            np.interp(chain.voxels[:, 0], np.arange(7), OFFSETS),
            (chain.voxels[:, 1] + 0.5) * 3,
            (chain.voxels[:, 2] + 0.5) * 3,
        ],
        axis=1,
    )
    return mm, chain


def test_clear_maps_give_their_peaks_below_a_voxel():
    mm, chain = decoded([(i, p, 0.95) for i, p in enumerate(PLANTED)])
    assert np.linalg.norm(mm - PLANTED, axis=1).max() < 0.7
    assert chain.posterior.min() > 0.95
    assert chain.flags == ("",) * 5


def test_a_missing_level_is_interpolated():
    mm, chain = decoded([(i, p, 0.9) for i, p in enumerate(PLANTED) if i != 2])
    assert np.linalg.norm(mm[2] - PLANTED[2]) < 8
    assert chain.flags == ("", "", "interpolated", "", "")
    assert np.linalg.norm(np.delete(mm - PLANTED, 2, 0), axis=1).max() < 0.7


def test_a_missing_end_is_extrapolated():
    mm, chain = decoded([(i, p, 0.9) for i, p in enumerate(PLANTED) if i != 4])
    assert np.linalg.norm(mm[4] - PLANTED[4]) < 8
    assert chain.flags == ("", "", "", "", "extrapolated")


def test_a_level_above_the_image_is_marked_outside():
    moved = PLANTED - [0, 55, 0]
    mm, chain = decoded([(i, p, 0.9) for i, p in enumerate(moved) if i > 0])
    assert chain.flags[0] == "outside"
    assert mm[0, 1] < 0
    assert np.linalg.norm(mm[1:] - moved[1:], axis=1).max() < 0.7


def test_a_spurious_peak_in_front_is_ignored_even_when_stronger():
    masses = [(i, p, 0.9) for i, p in enumerate(PLANTED) if i != 3]
    masses += [(3, PLANTED[3], 0.3), (3, PLANTED[3] + [0, 5, -65], 0.65)]
    mm, _ = decoded(masses)
    assert np.linalg.norm(mm[3] - PLANTED[3]) < 1.5


def test_one_level_named_as_its_neighbour_is_corrected():
    """L3/4 puts its mass on L4/5's disc; three levels that agree outvote it."""
    masses = [(i, p, 0.9) for i, p in enumerate(PLANTED) if i != 2]
    masses += [(2, PLANTED[3], 0.8), (2, PLANTED[2], 0.1)]
    mm, _ = decoded(masses)
    assert np.linalg.norm(mm - PLANTED, axis=1).max() < 2.5


def test_a_spine_that_may_be_shifted_has_low_confidence():
    """Every level has nearly as much mass on the disc above as on its own: right, but hardly confident."""
    # Evenly spaced in a straight line, so that both chains have one shape and lie alike about the image's middle.
    own = np.array([[13.0, 144 + 34 * (i - 2), 88] for i in range(5)])
    above = own - [0, 34, 0]
    masses = [(i, p, 0.52) for i, p in enumerate(own)] + [(i, p, 0.46) for i, p in enumerate(above)]
    mm, chain = decoded(masses)
    assert np.linalg.norm(mm - own, axis=1).max() < 2.5
    assert 0.4 < chain.posterior.max() < 0.85


def test_low_confidence_of_most_levels_marks_every_level():
    assert with_low_confidence(("", "outside", "", "", ""), np.full(5, 0.6))[1] == "outside, low_confidence"
    one = with_low_confidence(("",) * 5, np.array([0.4, 0.9, 0.9, 0.9, 0.95]))
    assert one == ("low_confidence", "", "", "", "")
    assert with_low_confidence(("",) * 5, np.full(5, 0.9)) == ("",) * 5


def test_nothing_seen_gives_no_chain():
    assert decode_chain(planted_maps([])) is None


# --- network and training ---------------------------------------------------------------------------------------


def test_probabilities_sum_to_one_over_voxels_and_absence():
    logits = torch.randn(2, 3, 5, 6, 4)
    voxels, absent = log_probability(logits)
    assert torch.allclose(voxels.exp().sum(dim=(1, 3, 4)) + absent.exp(), torch.ones(2, 5), atol=1e-5)


def test_loss_is_zero_for_the_target_itself_and_ignores_unknown_levels():
    target = torch.rand(1, 3, 5, 6, 4)
    target = 0.8 * target / target.sum(dim=(1, 3, 4), keepdim=True)
    absent, known = torch.full((1, 5), 0.2), torch.tensor([[True, True, True, True, False]])
    logits = (target / 0.2).log()
    assert abs(float(localizer_loss(logits, target, absent, known))) < 1e-5
    worse = logits.clone()
    worse[:, :, 4] += torch.randn(1, 3, 6, 4)
    assert abs(float(localizer_loss(worse, target, absent, known))) < 1e-5
    worse[:, :, 0] += torch.randn(1, 3, 6, 4)
    assert float(localizer_loss(worse, target, absent, known)) > 0.01


@pytest.mark.parametrize("seed", range(4))
def test_window_targets_lie_on_the_moved_anatomy(seed):
    """A bright dot planted at every canal point is where the target's mass is, after turning, scaling, shifting."""
    stack = render(CHAIN, pixel=(1.5, 1.5), size=(180, 140))
    stack.pixels[:] = 0
    voxels = np.round(stack.geometry.world_to_voxel(CHAIN)).astype(int)
    for k, row, column in voxels:
        stack.pixels[k, row - 1 : row + 2, column - 1 : column + 2] = 1
    stack.pixels[0, :10] = np.linspace(0, 1, 140)
    points = stack.geometry.voxel_to_world(voxels)
    sample = sample_from_series(FakeSeries((stack,)), points, 1.5)
    plain = Augmentation(
        window=9,
        anywhere=0,
        small_view=0,
        thicken=0,
        log_gamma=0,
        invert=0,
        curve=0,
        bias=0,
        blur=0,
        noise=0,
        cut_outs=0,
    )
    config = LocalizerConfig(through_sigma_mm=1.5, chain=LEVELS)
    window = draw_window(sample, config, plain, np.random.default_rng(seed))
    centre_slices = window.slices[:, config.neighbours]
    for level in range(5):
        mass = window.target[:, level]
        if mass.sum() < 0.9:
            continue
        k = int(mass.sum(dim=(1, 2)).argmax())
        rows, columns = torch.arange(mass.shape[1]) * 2 + 0.5, torch.arange(mass.shape[2]) * 2 + 0.5
        row = float((mass[k].sum(dim=1) @ rows) / mass[k].sum())
        column = float((mass[k].sum(dim=0) @ columns) / mass[k].sum())
        r, c = round(row), round(column)
        assert float(centre_slices[k, r - 1 : r + 2, c - 1 : c + 2].max()) > 0.4


def test_a_short_training_learns(localizer, toy_weights):
    losses = pd.read_csv(toy_weights / "history.csv")["loss"]
    assert losses.iloc[-1] < 0.5 * losses.iloc[0]
    rng = np.random.default_rng(99)
    found, truth = {}, {}
    for i in range(6):
        chain = random_chain(rng)
        series = FakeSeries((render(chain, angles=rng.normal(0, 3, 3)),), study_id=str(i))
        found[str(i)], truth[str(i)] = localizer.locate_series(series), chain
    numbers = summary(evaluate_points(found, truth))
    assert numbers["median_mm"] < 2.5
    assert numbers["within_5mm"] == 1
    assert numbers["studies_shifted"] == 0


@pytest.mark.parametrize("order", ["left_to_right", "transposed", "uneven"])
def test_points_do_not_depend_on_how_the_series_is_stored(localizer, order):
    plain = localizer.locate_series(FakeSeries((render(CHAIN, angles=(3, 5, -4)),)))
    other = localizer.locate_series(FakeSeries((render(CHAIN, angles=(3, 5, -4), order=order),)))
    assert np.linalg.norm(plain.points - CHAIN, axis=1).max() < 5
    assert np.linalg.norm(other.points - plain.points, axis=1).max() < (2.0 if order == "uneven" else 0.5)


def test_the_same_seed_gives_the_same_weights():
    sample = sample_from_series(FakeSeries((render(CHAIN),)), CHAIN, 2.0)
    training = LocalizerTraining(steps=3, batch=2, augmentation=Augmentation(window=3, canvas=(64, 64)), seed=5)
    first, second = (train_on_samples([sample], config=SMALL, training=training, progress=False) for _ in range(2))
    for a, b in zip(first.networks[0].parameters(), second.networks[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_weights_survive_a_folder(localizer, tmp_path):
    series = FakeSeries((render(CHAIN),))
    again = DiscLocalizer.load(localizer.save(tmp_path / "weights"))
    assert again.config == localizer.config
    assert np.allclose(again.locate_series(series).points, localizer.locate_series(series).points)
    assert sorted(p.name for p in (tmp_path / "weights").iterdir()) == ["config.json", "model.safetensors"]


def test_a_full_disk_and_weights_that_are_not_finite_keep_what_was_there(localizer, tmp_path, monkeypatch):
    folder = localizer.save(tmp_path / "weights")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    other = DiscLocalizer(copy.deepcopy(localizer.networks), made={"other": True})
    with torch.no_grad():
        next(other.networks[0].parameters()).mul_(2)

    def full(self, text, encoding=None):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(DataError, match="No space left"):
        patch.setattr(Path, "write_text", full)
        other.save(folder)
    with torch.no_grad():
        next(other.networks[0].parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match=r"model.safetensors: 0\..* holds numbers that are not finite"):
        other.save(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_wrong_weights_are_refused(localizer, tmp_path):
    with pytest.raises(DataError, match=r"no config\.json"):
        DiscLocalizer.load(tmp_path)
    folder = localizer.save(tmp_path / "weights")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"config": values["config"] | {"colour": 1}}))
    with pytest.raises(DataError, match=r"not weights of this localizer: .*'colour'"):
        DiscLocalizer.load(folder)
    (folder / "config.json").write_text(json.dumps(values | {"config": asdict(replace(SMALL, widths=(8, 8)))}))
    with pytest.raises(DataError, match="not weights of this localizer"):
        DiscLocalizer.load(folder)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(DataError, match="not weights of this localizer"):
        DiscLocalizer.load(folder)


def test_a_study_uses_t2_first_and_t1_when_there_is_no_t2(localizer):
    t2 = FakeSeries((render(CHAIN),), series_id="t2")
    wide = FakeSeries((render(CHAIN, n=13),), series_id="wide")
    t1 = FakeSeries((render(CHAIN, n=15),), series_id="t1", view=SAGITTAL_T1)
    assert localizer.locate(FakeStudy((t1, t2, wide))).series_id in ("wide", "t2")
    assert localizer.locate(FakeStudy((t1, t2))).series_id == "t2"
    assert localizer.locate(FakeStudy((t1,))).series_id == "t1"
    with pytest.raises(LumbarError, match="study 7: no sagittal series"):
        localizer.locate(FakeStudy())


def test_an_empty_image_is_an_error_that_names_the_series(localizer):
    stack = render(CHAIN)
    stack.pixels[:] = 3
    with pytest.raises(LocalizationError, match=r"study 7, series s: .*no contrast"):
        localizer.locate_series(FakeSeries((stack,)))


# --- a folder in the competition's layout -------------------------------------------------------------------------


def test_samples_of_a_folder_carry_its_points(cohort):
    """Points of the coordinate table, by way of DICOM and resampling, lie where the phantom's truth is."""
    folder = CompetitionFolder.open(cohort)
    truth = read_reference(cohort / "truth" / "discs.csv", point="canal")
    ids = folder.study_ids("train")
    samples = load_samples(folder, ids, 2.0, n_jobs=1, progress=False)
    assert {sample.view for sample in samples} == {SAGITTAL_T2, SAGITTAL_T1}
    for sample in samples:
        study = folder.load_study(sample.study_id, series_ids=[sample.series_id])
        volume = next(series_volumes(study.series[0], 2.0))
        assert volume.pixels.shape == sample.pixels.shape
        error = volume.to_world(sample.voxels) - truth[sample.study_id]
        # The table names a whole slice and a pixel that somebody clicked; a swapped level would be 20 mm off.
        assert np.nanmax(np.abs(error)) < 8
        assert np.nanmedian(np.linalg.norm(error[:, 1:], axis=1)) < 3


def test_training_from_a_folder_leaves_weights_and_history(cohort, tmp_path):
    folder = CompetitionFolder.open(cohort)
    small = Augmentation(window=3, canvas=(96, 64))
    training = LocalizerTraining(steps=150, batch=2, augmentation=small, time_limit_s=120)
    trained = train_localizer(
        folder, folder.study_ids("train"), config=SMALL, training=training, out=tmp_path, n_jobs=1, progress=False
    )
    assert trained.config.trained_on == "synthetic"
    history = pd.read_csv(tmp_path / "history.csv")
    assert list(history.columns) == ["member", "step", "loss", "learning_rate", "seconds"]
    assert history["loss"].iloc[-2:].mean() < 0.9 * history["loss"].iloc[0]
    again = DiscLocalizer.load(tmp_path)
    for a, b in zip(trained.networks[0].state_dict().values(), again.networks[0].state_dict().values(), strict=True):
        stored = a.half().float() if a.ndim >= 2 else a  # matrices in half precision
        assert torch.equal(stored, b)
    more = train_localizer(
        folder,
        folder.study_ids("train")[:2],
        start=again,
        training=replace(training, steps=1),
        n_jobs=1,
        progress=False,
    )
    assert more.config == again.config


@pytest.mark.parametrize("issue", [DataError("too few discs"), KeyboardInterrupt()])
def test_weights_never_lie_there_without_the_studies_they_have_learnt_from(cohort, tmp_path, monkeypatch, issue):
    def fails(*_):
        raise issue

    folder = CompetitionFolder.open(cohort)
    own = folder.study_ids("train")[:2]
    start = DiscLocalizer(SliceUNet(SMALL), calibration=LocalizerCalibration(2.0), made={"studies": ["an earlier one"]})
    training = LocalizerTraining.fine_tuning(steps=1, batch=1, augmentation=Augmentation(window=3, canvas=(96, 64)))
    monkeypatch.setattr(training_module, "_hold_out", lambda samples: (samples, samples))
    monkeypatch.setattr(training_module, "fit_localizer_calibration", fails)
    options = {"start": start, "training": training, "out": tmp_path, "n_jobs": 1, "progress": False}
    if isinstance(issue, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            train_localizer(folder, own, **options)
        assert not list(tmp_path.iterdir())
        return
    train_localizer(folder, own, **options)
    kept = DiscLocalizer.load(tmp_path)
    assert kept.made["studies"] == sorted(["an earlier one", *own])
    assert kept.calibration == start.calibration and (tmp_path / "history.csv").is_file()


def test_several_networks_are_trained_apart_and_their_heat_maps_averaged(tmp_path):
    sample = sample_from_series(FakeSeries((render(CHAIN, n=5),)), CHAIN, 2.0)
    training = LocalizerTraining(steps=2, batch=1, augmentation=Augmentation(window=3, canvas=(64, 64)))
    start = DiscLocalizer([SliceUNet(SMALL), SliceUNet(SMALL)])
    pair = train_on_samples([sample], config=SMALL, training=training, start=start, progress=False)
    assert [row["member"] for row in pair.history] == [0, 1], "fine-tuning trains as many networks as it begins with"
    first, second = (network.head.weight for network in pair.networks)
    assert not torch.equal(first, second)
    for weight in (first, second):  # so short a training leaves heat maps that are nearly flat
        weight.data *= 100
    alone = [DiscLocalizer(network).predict_heat_maps(sample).probability for network in pair.networks]
    together = pair.predict_heat_maps(sample).probability
    assert np.allclose(np.mean(alone, axis=0), together, atol=1e-7) and not np.allclose(*alone, atol=1e-7)
    again = DiscLocalizer.load(pair.save(tmp_path))
    for network in pair.networks:  # as they are stored
        network.load_state_dict({n: t.half() if t.ndim >= 2 else t for n, t in network.state_dict().items()})
    together = pair.predict_heat_maps(sample).probability
    assert np.allclose(again.predict_heat_maps(sample).probability, together)


def test_what_is_fitted_and_noted_survives_fine_tuning_and_a_folder(localizer, tmp_path):
    fitted = DiscLocalizer(
        localizer.networks, calibration=LocalizerCalibration(2.0, 0.7, -0.3, 0.4), made={"command": "x"}
    )
    again = DiscLocalizer.load(fitted.save(tmp_path))
    assert again.calibration == fitted.calibration and again.made == fitted.made
    sample = sample_from_series(FakeSeries((render(CHAIN),)), CHAIN, 2.0)
    training = LocalizerTraining.fine_tuning(steps=1, batch=1, augmentation=Augmentation(window=3, canvas=(64, 64)))
    tuned = train_on_samples([sample], config=SMALL, training=training, start=again, progress=False)
    assert tuned.calibration == fitted.calibration
    assert tuned.made["before"] == {"command": "x"}


def test_networks_that_know_the_neighbours_can_begin_one_for_the_five_levels(tmp_path):
    """The shipped networks look for eight discs; the competition's table has five of them."""
    torch.manual_seed(1)
    wide = SliceUNet(replace(SMALL, chain=NEIGHBOURS_TOO))
    narrow = SliceUNet(SMALL)
    narrow.restore_weights(wide)
    sample = sample_from_series(FakeSeries((render(CHAIN),)), CHAIN, 2.0)
    of_eight, of_five = (DiscLocalizer(network).predict_heat_maps(sample).probability for network in (wide, narrow))
    assert np.allclose(of_eight[:, wide.config.lumbar], of_five)
    with pytest.raises(DataError, match="another localizer network"):
        wide.restore_weights(narrow)


def test_the_neighbours_places_decide_a_label():
    """Eight links: the five levels are torn between two chains, and the sacral disc and T12/L1 settle it."""
    own = PLANTED + np.array([0, 20, 0])
    above = np.vstack([own[0] - [0, 34, 0], own[:-1]])
    low, high = own[-1] + [0, 26, 8], own[0] - [0, 32, 0]
    masses = [(2 + i, own[i], 0.47) for i in range(5)] + [(2 + i, above[i], 0.5) for i in range(5)]
    eight = planted_maps([*masses, (7, low, 0.9), (1, high, 0.9)], levels=8, shape=(90, 60))
    five = HeatMaps(eight.probability[:, 2:7], eight.absent[2:7], OFFSETS, SPACING)
    found = [decode_chain(maps, chain) for maps, chain in ((eight, NEIGHBOURS_TOO), (five, LEVELS))]
    with_them = found[0].voxels[2:7, 1] * 3 + 1.5
    assert np.abs(with_them - own[:, 1]).max() < 3
    assert found[0].posterior[2:7].min() > found[1].posterior.max()


def half_hidden(rng, hidden):
    """A toy spine, of which one half in the image may be overlaid with another one's."""
    chain = random_chain(rng)
    stack = render(chain)
    if hidden:
        other = render(random_chain(rng)).pixels
        half = other.shape[1] // 2
        stack.pixels[:, half:] = other[:, half:]
    return sample_from_series(FakeSeries((stack,)), chain, SMALL.pixel_mm)


def test_confidence_is_fitted_to_what_was_right(localizer):
    """On other samples than it was fitted on, the confidence is nearer to how often a point is right."""
    rng = np.random.default_rng(5)
    for_fit, for_check = ([half_hidden(rng, i % 2 == 0) for i in range(40)] for _ in range(2))
    calibration = fit_localizer_calibration(localizer, for_fit)
    losses = []
    for trial in (calibration, LocalizerCalibration()):
        located = locate_samples(DiscLocalizer(localizer.networks, calibration=trial), for_check)
        seen = np.isfinite(located.error_mm)
        right, confidence = located.error_mm[seen] <= 5, np.clip(located.confidence[seen], 1e-6, 1 - 1e-6)
        losses.append(-np.mean(np.where(right, np.log(confidence), np.log(1 - confidence))))
        if trial is calibration:
            assert 0.5 < right.mean() < 0.999, "the toy must be neither too easy nor too hard to show anything"
            assert abs(confidence.mean() - right.mean()) < 0.1
    assert losses[0] < losses[1]
    with pytest.raises(DataError, match="at least 50"):
        fit_localizer_calibration(localizer, for_fit[1:4])


def test_unknown_places_are_neither_right_nor_wrong(localizer):
    sample = half_hidden(np.random.default_rng(3), hidden=False)
    for unknown in ([1], [0, 1, 2, 3, 4]):
        voxels = sample.voxels.copy()
        voxels[unknown] = np.nan
        located = locate_samples(localizer, [replace(sample, voxels=voxels)])
        assert np.flatnonzero(np.isnan(located.error_mm[0])).tolist() == unknown
        assert located.shift[0] == 0


def test_a_scan_that_is_cut_off_ends_there_and_keeps_its_places(localizer):
    sample = half_hidden(np.random.default_rng(4), hidden=False)
    rng = np.random.default_rng(0)
    cuts = [cut_off(sample, rng) for _ in range(40)]
    heights = [cut.pixels.shape[1] for cut in cuts]
    assert min(heights) * sample.spacing[0] >= 100 and len(set(heights)) > 20 and max(heights) <= sample.pixels.shape[1]
    for cut, rows in zip(cuts, heights, strict=True):
        first = round(float((sample.voxels - cut.voxels)[0, 1]))  # rows lost at the upper end
        assert first in (0, sample.pixels.shape[1] - rows)
        alike = np.corrcoef(cut.pixels.ravel(), sample.pixels[:, first : first + rows].ravel().astype(float))[0, 1]
        assert alike > 0.99
        located = locate_samples(localizer, [cut])
        inside = (cut.voxels[:, 1] > -1) & (cut.voxels[:, 1] < rows)
        assert np.array_equal(located.in_view[0], inside)
        assert np.isfinite(located.error_mm[0][inside]).all()


def test_a_chain_without_the_sacrum_in_view_has_low_confidence_however_clear_the_rest_is():
    localizer = DiscLocalizer(SliceUNet(SMALL), calibration=LocalizerCalibration(unanchored=1.0))
    for last, anchored in ((4, True), (3, False)):
        chain = localizer.decode(planted_maps([(i, p, 0.95) for i, p in enumerate(PLANTED) if i <= last]))
        assert chain.anchored is anchored and chain.posterior[:4].min() > 0.8
        confidence = localizer.calibration.confidence(chain)
        assert (confidence[:4] >= LOW_CONFIDENCE_BELOW).all() == anchored
        assert with_low_confidence(chain.flags, confidence).count("") == (5 if anchored else 0)


def test_the_more_confident_of_a_series_stacks_counts(localizer, monkeypatch):
    """Of a long spine's stations the largest need not be the lumbar one."""
    points = np.asarray(CHAIN, dtype=float)
    low = DiscPoints("7", "s", points + 100, np.full(5, 0.5), ("low_confidence",) * 5)
    found = {20: low, 9: DiscPoints("7", "s", points, np.full(5, 0.9)), 7: None}
    located = []

    def locate_volume(volume, *_):
        located.append(len(volume.pixels))
        return found[located[-1]]

    monkeypatch.setattr(localizer, "locate_volume", locate_volume)
    stacks = {n: render(CHAIN, n=n) for n in found}
    series = FakeSeries(tuple(stacks[n] for n in (20, 9, 7)))
    assert np.allclose(localizer.locate_series(series).points, points)
    assert located == [20, 9], "no more are located than needed"
    assert np.allclose(localizer.locate_series(FakeSeries((stacks[20], stacks[7]))).points, points + 100)
    with pytest.raises(LocalizationError, match=r"series s: no chain .*\(7 slices\)"):
        localizer.locate_series(FakeSeries((stacks[7],)))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
def test_a_series_of_few_slices_can_be_trained_on_and_located(n):
    sample = sample_from_series(FakeSeries((render(CHAIN, n=n),)), CHAIN, 2.0)
    window = draw_window(sample, SMALL, Augmentation(window=3, canvas=(64, 64)), np.random.default_rng(0))
    assert window.slices.shape == (3, 3, 64, 64) and window.target.shape == (3, 5, 32, 32)
    assert torch.allclose(window.target.sum(dim=(0, 2, 3)) + window.absent, torch.ones(5), atol=1e-5)
    maps = DiscLocalizer(SliceUNet(SMALL)).predict_heat_maps(sample)
    assert np.allclose(maps.probability.sum(axis=(0, 2, 3)) + maps.absent, 1, atol=1e-4)


def test_before_any_image_the_decoder_does_not_prefer_one_of_neighbouring_labels():
    """Nine peaks with the same mass of every level: chains through the upper and the lower eight weigh the same."""
    places = np.stack([np.full(9, 13.0), 20 + 31.0 * np.arange(9), np.full(9, 88.0)], axis=1)
    maps = planted_maps([(level, place, 0.11) for level in range(8) for place in places], levels=8, shape=(96, 60))
    nowhere = ChainPrior(middle_spread=1e6)  # the image's middle does prefer one of them, by intention
    chain = decode_chain(maps, NEIGHBOURS_TOO, nowhere)
    assert 0.4 < chain.posterior.max() < 0.6


@pytest.mark.parametrize("cut", [0.0, 40.0, 80.0])
def test_links_far_above_the_image_do_not_push_the_others_down(cut):
    """Eight links, of which two to four lie above the image: the levels in view keep their labels."""
    down = np.concatenate([[0], np.cumsum([33.5, 34.5, 35.0, 35.0, 33.3, 28.6, 30.0])])
    places = np.stack([np.full(8, 13.0), down - down[2] + 20 - cut, 90 + np.zeros(8)], axis=1)
    masses = [(link, place, 0.9) for link, place in enumerate(places) if 0 < place[1] < 210]
    chain = decode_chain(planted_maps(masses, levels=8, shape=(70, 60)), NEIGHBOURS_TOO)
    seen = (places[:, 1] > 0) & (places[:, 1] < 210)
    found = chain.voxels[:, 1] * 3 + 1.5
    assert np.abs(found - places[:, 1])[seen].max() < 3
    assert all(flag == "outside" for flag, inside in zip(chain.flags, places[:, 1] > 0, strict=True) if not inside)


def test_phantoms_are_scanned_without_files():
    """Scans of randomised bodies: the points lie in the image from top to bottom, in order, and are reproducible."""
    first = synthetic_samples(range(4), 3, 2.0, scans=2, n_jobs=1, progress=False)
    again = synthetic_samples(range(2, 4), 3, 2.0, scans=2, n_jobs=1, progress=False)
    assert len(first) == 8
    for sample, same in zip(first[4:], again, strict=True):
        assert np.array_equal(sample.pixels, same.pixels) and np.array_equal(sample.voxels, same.voxels)
    other = synthetic_samples(range(1), 4, 2.0, scans=1, n_jobs=1, progress=False)
    assert not np.array_equal(other[0].voxels, first[0].voxels)
    for sample in first:
        assert sample.voxels.shape == (8, 3) and len(sample.pixels) == 5
        assert np.all(np.diff(sample.voxels[:, 1]) > 0)
        lumbar = sample.voxels[2:7, 1]
        assert lumbar.min() > 0 and lumbar.max() < sample.pixels.shape[1]
    with pytest.raises(DataError, match="at least once"):
        synthetic_samples(range(1), 3, 2.0, scans=0)


def test_a_time_limit_shortens_the_schedule(localizer):
    sample = sample_from_series(FakeSeries((render(CHAIN),)), CHAIN, 2.0)
    training = LocalizerTraining(
        steps=100_000, batch=1, time_limit_s=1.0, augmentation=Augmentation(window=3, canvas=(64, 64))
    )
    stopped = train_on_samples([sample], config=SMALL, training=training, progress=False)
    assert stopped.history[-1]["seconds"] < 10
    assert stopped.history[-1]["learning_rate"] < 0.05 * training.learning_rate


def test_real_series_are_preprocessed_and_decoded(real_mri, localizer):
    """The toy's weights know nothing of patients: only the plumbing is tested here, on real headers."""
    reference = read_reference(real_mri / "points.csv", point="posterior", study_column="case")
    found = {}
    for source in find_studies(real_mri):
        study = load_study(source)
        volume = next(series_volumes(study.series[0], localizer.config.pixel_mm))
        inside = volume.to_voxel(reference[source.study_id])
        inside = inside[np.isfinite(inside).all(axis=1)]
        assert np.all((inside > -0.5) & (inside < np.array(volume.pixels.shape) - 0.5))
        try:
            found[source.study_id] = localizer.locate(study)
        except LocalizationError as error:
            assert source.study_id in str(error)
    assert len(evaluate_points(found, reference)) == len(pd.read_csv(real_mri / "points.csv"))


# --- evaluation -------------------------------------------------------------------------------------------------


def test_errors_are_measured_along_the_spine_and_shifts_are_counted():
    errors = point_errors(CHAIN - np.array([0, 0, 3]), CHAIN)
    assert np.allclose(errors.distance, 3)
    assert np.all((errors.along > 2.5) & (errors.along <= 3))
    assert errors.shift == 0
    lower = np.vstack([CHAIN[1:], CHAIN[4] + [0, 8, -28]])
    assert point_errors(lower, CHAIN).shift == 1
    partly = CHAIN.copy()
    partly[4] = np.nan
    assert point_errors(lower, partly).shift == 1


@pytest.mark.parametrize("known", [[3, 4], [0, 1], [2], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_a_shift_is_seen_however_few_the_references(known, shift):
    line = np.stack([np.zeros(7), np.zeros(7), -34.0 * np.arange(7)], axis=1)
    reference = np.full((5, 3), np.nan)
    reference[known] = line[1:6][known]
    errors = point_errors(line[1 + shift : 6 + shift], reference)
    assert errors.shift == shift
    assert np.allclose(errors.along[known], 34 * shift)


def test_a_study_that_was_not_found_counts_as_wrong():
    found = {"1": DiscPoints("1", "s", CHAIN, np.ones(5))}
    frame = evaluate_points(found, {"1": CHAIN, "2": CHAIN})
    assert list(frame["level"]) == [*LEVELS, *LEVELS]
    numbers = summary(frame)
    assert numbers["within_5mm"] == 0.5
    assert numbers["studies_not_found"] == 1
    assert isinstance(frame, pd.DataFrame)


def located(points, confidence, series_id, flags=("",) * 5):
    return DiscPoints("7", series_id, np.asarray(points, dtype=float), np.full(5, confidence), flags)


def test_points_on_two_series_are_averaged_or_get_low_confidence_where_their_chains_differ():
    chain = np.stack([np.zeros(5), np.zeros(5), -35.0 * np.arange(5)], axis=-1)
    t2 = located(chain, 0.9, "t2", ("", "", "", "", "low_confidence"))
    near = fuse_series("7", [(t2, 1.0), (located(chain + np.array([3, 0, 0]), 0.9, "t1"), T1_WEIGHT)])
    assert near.series_id == "t2"
    np.testing.assert_allclose(near.points, chain + np.array([3 * T1_WEIGHT / (1 + T1_WEIGHT), 0, 0]))
    np.testing.assert_allclose(near.confidence, 0.9)
    assert near.flags == ("",) * 5, "what both see has high confidence"

    shifted = located(chain - np.array([0, 0, 35]), 0.6, "t1")
    apart = fuse_series("7", [(t2, 1.0), (shifted, T1_WEIGHT)])
    np.testing.assert_allclose(apart.points, chain)
    np.testing.assert_allclose(apart.confidence, 0.9 * 0.9 / 1.5)
    assert set(apart.flags) == {"low_confidence"}

    unsure = located(chain - np.array([0, 0, 35]), 0.05, "t1")
    disputed = fuse_series("7", [(t2, 1.0), (unsure, T1_WEIGHT)])
    assert set(disputed.flags) == {"low_confidence"}, "the more confident one may be wrong"

    confident = located(chain - np.array([0, 0, 35]), 0.95, "t1")
    assert fuse_series("7", [(located(chain, 0.3, "t2"), 1.0), (confident, T1_WEIGHT)]).series_id == "t1"


def test_a_level_on_another_disc_gets_low_confidence_and_a_mere_offset_of_the_series_does_not():
    chain = np.stack([np.zeros(5), np.zeros(5), -35.0 * np.arange(5)], axis=-1)
    t2 = located(chain, 0.95, "t2")
    astray = chain.copy()
    astray[0] += [0, 0, 30]
    one = fuse_series("7", [(t2, 1.0), (located(astray, 0.95, "t1"), T1_WEIGHT)])
    np.testing.assert_allclose(one.points, chain)
    np.testing.assert_allclose(one.confidence, [0.475, 0.95, 0.95, 0.95, 0.95], atol=1e-6)
    assert one.flags == ("low_confidence", "", "", "", "")

    moved = fuse_series("7", [(t2, 1.0), (located(chain + np.array([14, 0, 0]), 0.95, "t1"), T1_WEIGHT)])
    np.testing.assert_allclose(moved.points, chain)
    np.testing.assert_allclose(moved.confidence, 0.95)
    assert moved.flags == ("",) * 5


def test_a_disc_that_one_series_shows_and_the_other_imputes_is_taken_from_the_one_that_shows_it():
    chain = np.stack([np.zeros(5), np.zeros(5), -35.0 * np.arange(5)], axis=-1)
    guessed = chain.copy()
    guessed[0] += [0, 6, 14]
    t2 = DiscPoints("7", "t2", guessed, [0.15, 0.95, 0.95, 0.95, 0.95], ("outside, low_confidence", "", "", "", ""))
    t1 = located(chain, 0.9, "t1")
    both = fuse_series("7", [(t2, 1.0), (t1, T1_WEIGHT)])
    assert both.series_id == "t2" and both.flags == ("",) * 5
    np.testing.assert_allclose(both.points, chain)
    np.testing.assert_allclose(both.confidence, [0.9, 0.95, 0.95, 0.95, 0.95])
    alone = fuse_series("7", [(t2, 1.0)])
    assert alone.flags == t2.flags and np.allclose(alone.points, guessed)
