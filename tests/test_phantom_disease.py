"""The phantom population and its reader: prevalences, correlations and the oracle's score are the competition's."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.stats import spearmanr

from lumbar_utils.labels import MIRROR_PERMUTATION, N_TARGETS, target_index
from lumbar_utils.metrics.score import competition_score
from lumbar_utils.phantom import disease, reader_model


def degrees_of(n: int, seed: int) -> np.ndarray:
    return np.stack([disease.sample_person(index, seed).degrees for index in range(n)])


def labels_of(degrees: np.ndarray, seed: int) -> np.ndarray:
    return np.stack([reader_model.label_person(row, index, seed) for index, row in enumerate(degrees)])


@pytest.fixture(scope="module")
def large_cohort():
    """Degrees and labels of 12,000 people."""
    degrees = degrees_of(12_000, 5)
    return degrees, labels_of(degrees, 5)


@pytest.mark.parametrize("seed", [0, 20_24])
def test_two_thousand_studies_have_the_competitions_prevalences_within_sampling_error(seed):
    started = time.process_time()
    labels = labels_of(degrees_of(2000, seed), seed)
    assert time.process_time() - started < 10
    expected = reader_model.prevalence()
    found = np.stack([(labels == k).mean(axis=0) for k in range(3)], axis=1)
    z = (found - expected) / np.sqrt(expected * (1 - expected) / 2000)
    assert z.shape == (N_TARGETS, 3)
    assert np.abs(z).max() < 4.5  # 75 differences in standard errors, of which the rare classes are skewed
    assert np.sqrt(np.mean(z**2)) < 1.6
    assert (labels[:, :5] == 2).any(axis=1).mean() == pytest.approx(0.185, abs=0.03)


@pytest.mark.parametrize("seed", [0, 1, 20_24])
def test_the_oracle_scores_what_the_best_real_solutions_do(seed):
    degrees = degrees_of(2000, seed)
    oracle = competition_score(labels_of(degrees, seed), reader_model.class_probabilities(degrees))
    assert oracle.total == pytest.approx(0.36, abs=0.02)
    assert oracle.spinal < oracle.foraminal < 0.55 and oracle.spinal < oracle.subarticular < 0.55


def test_the_average_prevalences_are_exact(large_cohort):
    _, labels = large_cohort
    expected = reader_model.prevalence()
    got = np.stack([(labels == k).mean(axis=0) for k in range(3)], axis=1)
    assert np.abs(got - expected).max() < 0.015
    assert np.abs(got - expected).mean() < 0.003


def test_labels_correlate_as_the_competitions(large_cohort):
    _, labels = large_cohort

    def rho(a, b):
        return spearmanr(labels[:, target_index(*a)], labels[:, target_index(*b)])[0]

    canal, left_f, right_f, left_s, right_s = range(5)
    assert rho((canal, 3), (left_s, 3)) == pytest.approx(0.58, abs=0.04)
    assert rho((canal, 3), (right_s, 3)) == pytest.approx(0.58, abs=0.04)
    assert rho((left_s, 3), (right_s, 3)) == pytest.approx(0.56, abs=0.04)
    assert rho((left_f, 3), (right_f, 3)) == pytest.approx(0.36, abs=0.04)
    assert rho((canal, 3), (left_f, 3)) == pytest.approx(0.33, abs=0.04)
    for level, wanted in enumerate((0.32, 0.45, 0.40, 0.18)):
        assert rho((canal, level), (canal, level + 1)) == pytest.approx(wanted, abs=0.05)
    for level, wanted in enumerate((0.32, 0.42, 0.46, 0.40)):
        both = [rho((c, level), (c, level + 1)) for c in (left_f, right_f)]
        assert np.mean(both) == pytest.approx(wanted, abs=0.05)


def test_the_oracle_is_calibrated(large_cohort):
    degrees, labels = large_cohort
    probabilities = reader_model.class_probabilities(degrees)
    assert probabilities.shape == (*labels.shape, 3)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1)
    assert probabilities.min() > 0
    for k in range(3):
        for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1.0)):
            chosen = (probabilities[..., k] >= low) & (probabilities[..., k] < high)
            assert (labels == k)[chosen].mean() == pytest.approx(probabilities[..., k][chosen].mean(), abs=0.015)


def test_the_degree_decides_the_label_up_to_the_readers_noise():
    degrees = np.tile(np.array([0.05, 1.0, 1.5, 2.0, 2.95])[:, None], (1, N_TARGETS))
    normal, moderate, severe = np.moveaxis(reader_model.class_probabilities(degrees), -1, 0)
    assert np.all(normal[0] > 0.98) and np.all(severe[4] > 0.98)
    np.testing.assert_allclose(normal[1], 0.5, atol=0.01)
    np.testing.assert_allclose(severe[3], 0.5, atol=0.01)
    assert np.all(moderate[2] > 0.6)


def test_degrees_are_bounded_and_the_folding_is_one_to_one(large_cohort):
    degrees, _ = large_cohort
    assert degrees.min() > 0 and degrees.max() < 3
    perceived = np.linspace(-6, 8, 500)
    folded = disease.degree_of(perceived)
    assert np.all(np.diff(folded) > 0)
    np.testing.assert_allclose(disease.perceived_of(folded), perceived, atol=1e-9)
    np.testing.assert_allclose(disease.degree_of([1.0, 1.3, 2.0]), [1.0, 1.3, 2.0])


def test_a_person_depends_on_seed_and_index_only():
    degrees = degrees_of(6, 9)
    for index in (5, 0, 3):
        person = disease.sample_person(index, 9)
        np.testing.assert_array_equal(person.degrees, degrees[index])
        assert person.seed == disease.sample_person(index, 9).seed
    assert not np.array_equal(degrees, degrees_of(6, 10))
    assert not np.array_equal(reader_model.label_person(degrees[4], 4, 9), reader_model.label_person(degrees[4], 5, 9))


def test_mirroring_swaps_sides_and_is_its_own_inverse():
    person = disease.sample_person(2, 7)
    mirrored = person.mirrored()
    np.testing.assert_array_equal(mirrored.degrees, person.degrees[MIRROR_PERMUTATION])
    left, right = (target_index(f"{side}_subarticular_stenosis", 3) for side in ("left", "right"))
    assert mirrored.degrees[left] == person.degrees[right]
    assert mirrored.scoliosis_degrees == -person.scoliosis_degrees
    assert mirrored.flipped and not mirrored.mirrored().flipped
    np.testing.assert_array_equal(mirrored.mirrored().degrees, person.degrees)


def test_extras_go_with_age_level_and_stenosis():
    people = [disease.sample_person(index, 1) for index in range(1500)]
    wear = np.array([p.degeneration for p in people])
    canal = np.array([p.degrees[:5] for p in people])
    age = np.array([p.age for p in people])
    assert wear.min() >= 0 and wear.max() <= 1
    assert np.all(np.diff(wear.mean(axis=0)[:4]) > 0)
    assert spearmanr(age, wear.mean(axis=1))[0] > 0.4
    assert spearmanr(canal[:, 3], wear[:, 3])[0] > 0.2
    slips = np.array([p.listhesis_mm for p in people])
    slipped = (slips[:, 3] > 2).mean()
    assert 0.04 < slipped < 0.25 and slipped > (slips[:, 0] > 2).mean()
    assert canal[slips[:, 3] > 2, 3].mean() > canal[:, 3].mean()
    modic = np.array([p.modic for p in people])
    assert set(np.unique(modic)) <= {0, 1, 2, 3} and 0.02 < (modic > 0).mean() < 0.3
    assert 0.05 < np.mean([p.haemangioma >= 0 for p in people]) < 0.2
    assert 0.9 < np.mean([p.stature for p in people]) < 1.1


def test_build_is_that_of_people_lying_down():
    people = [disease.sample_person(index, 1) for index in range(1500)]
    lordosis = np.array([p.lordosis_degrees for p in people])
    slope = np.array([p.sacral_slope_degrees for p in people])
    assert 42 < lordosis.mean() < 46 and 8 < lordosis.std() < 12
    assert 35 < slope.mean() < 38 and 6.5 < slope.std() < 9 and spearmanr(lordosis, slope)[0] > 0.5
    transition = np.array([p.transition for p in people])
    assert 0.07 < (transition != 0).mean() < 0.13 and np.abs(transition).max() <= 0.5
    assert np.ptp([p.sacral_kyphosis_degrees for p in people]) > 40


def test_randomised_people_keep_their_degrees_and_go_beyond_the_population():
    people = [disease.sample_person(index, 1, randomise=True) for index in range(400)]
    for index in (0, 17):
        ordinary, again = disease.sample_person(index, 1), disease.sample_person(index, 1, randomise=True)
        np.testing.assert_array_equal(ordinary.degrees, people[index].degrees)
        assert again.stature == people[index].stature and again.seed == ordinary.seed
    for name, low, high in (
        ("stature", 0.75, 1.22),
        ("lordosis_degrees", 9, 76),
        ("sacral_slope_degrees", 12, 60),
        ("scoliosis_degrees", -25, 25),
        ("fat_mm", 5, 90),
    ):
        values = [getattr(p, name) for p in people]
        assert min(values) < low and max(values) > high, name
    for name in ("fracture", "schmorl_mm", "marrow", "herniation_mm", "laminectomy", "pelvic_mass_mm", "ascites"):
        assert 0.03 < np.mean([np.any(getattr(p, name)) for p in people]) < 0.6, name
    mirrored = people[0].mirrored()
    np.testing.assert_array_equal(mirrored.herniation_at_mm, -people[0].herniation_at_mm)
