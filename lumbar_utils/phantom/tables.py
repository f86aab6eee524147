"""The cohort's tables: the competition's five, and the truth.

Every study leaves one JSON record while the cohort is made; when all are there the tables are put together from them,
sorted by study id as the competition's are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..files import write_table
from ..labels import (
    CONDITIONS,
    LEVELS,
    N_LEVELS,
    N_SEVERITIES,
    PROBABILITY_COLUMNS,
    TARGETS,
    condition_title,
    decode_severities,
    level_title,
)
from .reader_model import oracle_frame

DISC_COLUMNS = ("centre", "posterior", "canal", "normal")

SYNTHETIC_NOTE = """# Synthetic data

Everything in this folder was computed: {n_studies} studies of phantoms, seed {seed}, profile `{profile}`.
No patient was scanned. The layout is that of the RSNA 2024 Lumbar Spine Degenerative Classification data;
the images, labels and points are not. Models trained on them are for trying out the software only: what they say
about a real scan means nothing. Not a medical device.

`truth/` holds what no real data set has: where the discs are (`discs.csv`, LPS mm), the anatomical degree of
each of the 25 targets (`latents.csv`), the labels of all studies (`labels.csv`) and the exact probability of each
label given the anatomy (`oracle.csv`): weighted as the metric does, nobody can beat them. Only evaluation may read it.
"""


def write_tables(root: Path, records: Sequence[dict]) -> None:
    """Write all tables of a cohort from its studies' records. Each file appears whole or not at all."""
    records = sorted(records, key=lambda record: int(record["study_id"]))
    train = [record for record in records if record["part"] == "train"]
    test = [record for record in records if record["part"] == "test"]
    ids = [record["study_id"] for record in records]
    degrees = np.array([record["degrees"] for record in records])
    latents = pd.DataFrame(degrees, columns=list(TARGETS))
    latents.insert(0, "study_id", ids)

    for name, table in {
        "train.csv": _labels(train),
        "train_label_coordinates.csv": _coordinates(train),
        "train_series_descriptions.csv": _series(train),
        "test_series_descriptions.csv": _series(test),
        "sample_submission.csv": _sample_submission(test),
        "truth/labels.csv": _labels(records),
        "truth/discs.csv": _discs(records),
        "truth/latents.csv": latents,
        "truth/oracle.csv": oracle_frame(ids, degrees),
    }.items():
        write_table(root / name, table, float_format=None)


def _labels(records: Sequence[dict]) -> pd.DataFrame:
    codes = np.array([record["labels"] for record in records], dtype=int).reshape(-1, len(TARGETS))
    return decode_severities(codes, [record["study_id"] for record in records])


def _series(records: Sequence[dict]) -> pd.DataFrame:
    rows = [(record["study_id"], *item) for record in records for item in record["series"]]
    return pd.DataFrame(rows, columns=["study_id", "series_id", "series_description"])


def _coordinates(records: Sequence[dict]) -> pd.DataFrame:
    rows = [
        (record["study_id"], series_id, number, condition_title(CONDITIONS[target // N_LEVELS]),
         level_title(LEVELS[target % N_LEVELS]), round(x, 6), round(y, 6))
        for record in records
        for series_id, number, target, x, y in record["points"]
    ]  # fmt: skip
    columns = ["study_id", "series_id", "instance_number", "condition", "level", "x", "y"]
    return pd.DataFrame(rows, columns=columns)


def _sample_submission(records: Sequence[dict]) -> pd.DataFrame:
    """Studies by id, within a study the targets by name: the order of the competition's file."""
    row_ids = [f"{record['study_id']}_{target}" for record in records for target in sorted(TARGETS)]
    shares = dict.fromkeys(PROBABILITY_COLUMNS, round(1 / N_SEVERITIES, 6))
    return pd.DataFrame({"row_id": pd.Series(row_ids, dtype=object)}).assign(**shares)


def _discs(records: Sequence[dict]) -> pd.DataFrame:
    """One row a level; nanometres are kept."""
    rows = []
    for record in records:
        for index, level in enumerate(LEVELS):
            values = [round(v, 6) for name in DISC_COLUMNS for v in record["discs"][name][index]]
            rows.append((record["study_id"], level, *values))
    columns = [f"{name}_{axis}" for name in DISC_COLUMNS for axis in "xyz"]
    return pd.DataFrame(rows, columns=["study_id", "level", *columns])
