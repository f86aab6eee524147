"""The vocabulary: names, order and codes as the competition's files have them."""

import numpy as np
import pandas as pd
import pytest

from lumbar_utils import labels
from lumbar_utils.errors import DataError


def test_targets_are_the_columns_of_train_csv_in_order():
    assert labels.N_TARGETS == 25
    assert labels.TARGETS[0] == "spinal_canal_stenosis_l1_l2"
    assert labels.TARGETS[6] == "left_neural_foraminal_narrowing_l2_l3"
    assert labels.TARGETS[-1] == "right_subarticular_stenosis_l5_s1"
    for index, target in enumerate(labels.TARGETS):
        condition, level = divmod(index, 5)
        assert labels.target_index(condition, level) == index
        assert target == f"{labels.CONDITIONS[condition]}_{labels.LEVELS[level]}"


def test_mirroring_swaps_left_and_right_and_undoes_itself():
    permutation = labels.MIRROR_PERMUTATION
    for index, target in enumerate(labels.TARGETS):
        swapped = target.replace("left", "~").replace("right", "left").replace("~", "right")
        assert labels.TARGETS[permutation[index]] == swapped
    assert (permutation[permutation] == np.arange(25)).all()


@pytest.mark.parametrize("level", labels.LEVELS)
def test_level_titles_round_trip(level):
    assert labels.level_from_title(labels.level_title(level)) == level


@pytest.mark.parametrize("condition", labels.CONDITIONS)
def test_condition_titles_round_trip(condition):
    assert labels.condition_from_title(labels.condition_title(condition)) == condition


def test_severities_round_trip_with_missing_labels(tmp_path):
    codes = np.random.default_rng(0).integers(-1, 3, (30, 25)).astype(np.int8)
    path = tmp_path / "train.csv"
    labels.decode_severities(codes, [str(i) for i in range(30)]).to_csv(path, index=False)
    np.testing.assert_array_equal(labels.encode_severities(pd.read_csv(path)), codes)


def test_row_ids_split_back():
    for study in ("4003253", "a_b"):
        assert [labels.split_row_id(r) for r in labels.row_ids([study])] == [(study, t) for t in range(25)]


def test_strange_tables_are_refused_with_a_reason():
    frame = labels.decode_severities(np.zeros((2, 25), dtype=np.int8), ["1", "2"])
    with pytest.raises(DataError, match="lacks 1 of 25 columns"):
        labels.encode_severities(frame.drop(columns=labels.TARGETS[3]))
    frame.loc[1, labels.TARGETS[3]] = "Mild"
    with pytest.raises(DataError, match="holds 'Mild'"):
        labels.encode_severities(frame)
    with pytest.raises(DataError, match="unknown level 'T12/L1'"):
        labels.level_from_title("T12/L1")
    with pytest.raises(DataError, match="does not end with"):
        labels.split_row_id("12_canal_l1_l2")
