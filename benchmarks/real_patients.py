"""How right a run is on real patients of whom single slices are known.

    python benchmarks/real_patients.py ../shared/real_rsna                             the classifier that ships
    python benchmarks/real_patients.py ../shared/real_rsna --run runs/demo/classifier

The folder holds `axial.csv` and `t1.csv` with pictures (see its README.md) and `reference_oof.csv` of another network
on the same rows; complete studies are graded by `lumbar predict` and `lumbar score`. One view is given at a time: canal
and recesses are graded from axial crops alone, foramina from sagittal T1 slices alone, the other views are missing.
Each number comes with its 95 % bootstrap interval over studies. Nothing is fitted to these patients.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lumbar_utils.crops.extraction import CropSpec, StudyCrops, extract_crops
from lumbar_utils.dicom.series import Series, Stack
from lumbar_utils.evaluation.agreement import agreement_table, target_groups
from lumbar_utils.files import read_json, write_json
from lumbar_utils.geometry import StackGeometry
from lumbar_utils.inference.predictor import Predictor
from lumbar_utils.labels import (
    AXIAL_T2,
    CONDITIONS,
    LEVELS,
    MISSING,
    N_LEVELS,
    N_TARGETS,
    SAGITTAL_T1,
    SEVERITIES,
    condition_from_title,
    level_from_title,
    target_index,
)
from lumbar_utils.localization.points import DiscPoints
from lumbar_utils.metrics.bootstrap import resample_counts, with_interval
from lumbar_utils.metrics.score import label_weights, log_losses, plain_frequencies, weighted_prior
from lumbar_utils.models.run_folder import MADE, shipped_classifier
from lumbar_utils.studies.data import Study

AXIAL_FIELD_OF_VIEW_MM = 190.0
SLICE_STEP_MM = 4.4
FORAMINA_MM = 115.0
"""Length of the chain of five foramina, by which T1 pictures of unknown spacing are scaled."""
CANAL_FROM_FORAMEN_MM = np.array([(3.5, 5.8), (3.5, 5.0), (6.0, 5.5), (10.0, 5.0), (12.0, 0.3)])
"""Backward and down, from L1/L2 to L5/S1, as in complete studies with points."""
T1_HALF_WIDTH_MM = 44.0
T1_SIDE = 250
"""Pixels to which whole slices were scaled before they were cut."""
WORDS = {"spinal": "canal", "subarticular": "recesses", "foraminal": "foramina"}
"""What people call the families of targets."""
TARGETS_OF = {AXIAL_T2: ("spinal_canal_stenosis", "left_subarticular_stenosis", "right_subarticular_stenosis")}
TARGETS_OF[SAGITTAL_T1] = tuple(name for name in CONDITIONS if "foraminal" in name)


def axial_studies(folder: Path) -> Iterator[tuple[str, StudyCrops | Study, DiscPoints, np.ndarray]]:
    """Studies of three-slice axial crops, with points and labels (25,)."""
    table = pd.read_csv(folder / "axial.csv", dtype={"study_id": str}).sort_values("file", kind="stable")
    for study_id, rows in table.groupby("study_id"):
        rows = rows.drop_duplicates("level")  # of several crops of a level the first by name
        labels, points, stacks = np.full(N_TARGETS, MISSING), np.full((N_LEVELS, 3), np.nan), []
        for row in rows.itertuples():
            level = LEVELS.index(level_from_title(row.level))
            pixels = np.asarray(Image.open(folder / "axial" / row.file).convert("RGB"), dtype=np.float32)
            spacing = AXIAL_FIELD_OF_VIEW_MM / max(row.image_height, row.image_width)
            points[level] = 0, 0, -40.0 * level  # the real distance of the levels is not known, and not needed
            stacks.append(axial_stack(pixels.transpose(2, 0, 1), spacing, points[level]))
            for condition in TARGETS_OF[AXIAL_T2]:
                grade = getattr(row, condition)
                if isinstance(grade, str):
                    labels[target_index(condition, level)] = SEVERITIES.index(grade)
        yield study_id, *_as_study(study_id, AXIAL_T2, stacks, points), labels


def axial_stack(pixels: np.ndarray, spacing: float, centre: np.ndarray) -> Stack:
    """Slices (n, rows, columns) from above downward whose middle is at `centre`, patient's left on the right."""
    n, rows, columns = pixels.shape
    corner = centre - [spacing * (columns - 1) / 2, spacing * (rows - 1) / 2, 0]
    along = (np.arange(n) - (n - 1) / 2)[:, None] * [0, 0, -SLICE_STEP_MM]
    order = slice(None, None, -1)  # a stack ascends along its normal, which is up here
    geometry = StackGeometry((corner + along)[order], np.eye(3)[0], np.eye(3)[1], (spacing, spacing), (rows, columns))
    return Stack(pixels[order], geometry, tuple(range(n, 0, -1)), ())


def t1_studies(folder: Path, n: int | None = 300) -> Iterator[tuple[str, Study, DiscPoints, np.ndarray]]:
    """The first `n` studies by id with all ten foramina, with points and labels (25,)."""
    table = pd.read_csv(folder / "t1.csv", dtype={"study_id": str})
    table = table.assign(
        condition=table["condition"].map(condition_from_title), level=table["level"].map(level_from_title)
    )
    whole = [
        (s, rows) for s, rows in table.groupby("study_id") if len(rows[["condition", "level"]].drop_duplicates()) == 10
    ]
    for study_id, rows in sorted(whole, key=lambda item: int(item[0]))[:n]:
        labels = np.full(N_TARGETS, MISSING)
        pictures = {}
        for row in rows.itertuples():
            if isinstance(row.grade, str):
                labels[target_index(row.condition, row.level)] = SEVERITIES.index(row.grade)
            pictures[row.instance_number] = np.asarray(
                Image.open(folder / "t1" / row.file).convert("L"), dtype=np.float32
            )
        marks = rows.drop_duplicates(["condition", "level"]).set_index(["condition", "level"])
        left, right = (marks.loc[name].loc[list(LEVELS)] for name in TARGETS_OF[SAGITTAL_T1])
        yield study_id, *t1_study(study_id, pictures, left, right), labels


def t1_study(
    study_id: str, pictures: dict[int, np.ndarray], left: pd.DataFrame, right: pd.DataFrame
) -> tuple[Study, DiscPoints]:
    """A T1 series from the slices that were marked, each half filled with its nearest slice, and its canal points.

    `left` and `right` hold x, y (pixels of the file), rows, columns and instance_number from L1/L2 to L5/S1.
    """
    first = left.iloc[0]
    shape = tuple(np.max([picture.shape for picture in pictures.values()], axis=0))  # two series: nearly of one size
    pictures = {
        number: np.pad(p, [(0, a - b) for a, b in zip(shape, p.shape, strict=True)]) for number, p in pictures.items()
    }
    original = np.array([first["rows"], first["columns"]]) / T1_SIDE
    marks = np.stack([side[["y", "x"]].to_numpy(float) * original for side in (left, right)])
    length = np.linalg.norm(np.diff(marks, axis=1), axis=-1).sum(axis=1).mean()
    spacing = FORAMINA_MM / length * original
    canal = marks.mean(axis=0) * FORAMINA_MM / length + CANAL_FROM_FORAMEN_MM[:, ::-1]
    sides = [side["instance_number"].median() for side in (left, right)]
    to_left = 1.0 if sides[0] > sides[1] else -1.0
    middle = np.mean([side["instance_number"].mean() for side in (left, right)])
    offsets = {number: to_left * (number - middle) * SLICE_STEP_MM for number in pictures}
    place = np.arange(-T1_HALF_WIDTH_MM, T1_HALF_WIDTH_MM + 1, SLICE_STEP_MM)
    nearest = []
    for x in place:
        half = {k: v for k, v in offsets.items() if (v >= 0) == (x >= 0)} or offsets
        nearest.append(min(half, key=lambda number: abs(half[number] - x)))
    pixels = np.stack([pictures[number] for number in nearest])
    positions = np.stack([place, np.zeros_like(place), np.zeros_like(place)], axis=1)
    rows, columns = np.array([0.0, 1, 0]), np.array([0.0, 0, -1])  # the normal of this plane points to the right
    order = slice(None, None, -1)
    geometry = StackGeometry(positions[order], rows, columns, tuple(spacing), shape)
    stack = Stack(pixels[order], geometry, tuple(range(1, len(place) + 1)), ())
    points = np.column_stack([np.zeros(N_LEVELS), canal[:, 1], -canal[:, 0]])
    return _as_study(study_id, SAGITTAL_T1, [stack], points)


def _as_study(study_id: str, view: str, stacks: list[Stack], points: np.ndarray) -> tuple[Study, DiscPoints]:
    points = np.where(np.isfinite(points), points, [[0, 0, -40.0 * level] for level in range(N_LEVELS)])
    series = Series(study_id, "1", view, tuple(stacks))
    return Study(study_id, (series,)), DiscPoints(study_id, "1", points, np.ones(N_LEVELS), source="table")


def reference(folder: Path, study_ids: list[str]) -> np.ndarray:
    """What another network said of these studies, (n, 25, 3), nan where it said nothing."""
    table = pd.read_csv(folder / "reference_oof.csv").set_index("row_id")
    wanted = [f"{s}_{condition}_{level}" for s in study_ids for condition in CONDITIONS for level in LEVELS]
    return table.reindex(wanted).to_numpy(float).reshape(len(study_ids), N_TARGETS, 3)


def measure(labels: np.ndarray, predictions: dict[str, np.ndarray], *, n: int = 500) -> pd.DataFrame:
    """AUC, kappa of plain frequencies and weighted log loss by family and condition, with intervals; see `main`."""
    plain = {name: plain_frequencies(p) for name, p in predictions.items()}
    tables = [agreement_table(labels, plain, by=by, n=n) for by in ("family", "condition")]
    counts = resample_counts(len(labels), n)
    rows = []
    for by in ("family", "condition"):
        for group, targets in target_groups(by).items():
            weights = label_weights(labels[:, targets])
            for name, p in predictions.items():
                loss = (log_losses(labels, p)[:, targets] * weights).sum(axis=1)
                with np.errstate(invalid="ignore"):
                    values = (counts @ loss) / (counts @ weights.sum(axis=1))
                rows.append((group, name, "log loss", *with_interval(values), int((weights > 0).sum()), 0))
    table = pd.concat([*tables, pd.DataFrame(rows, columns=tables[0].columns)], ignore_index=True)
    keep = ["AUC severe", "AUC moderate or worse", "quadratic kappa", "log loss"]
    return table[table["measure"].isin(keep) & (table["labels"] > 0)]


def collect(studies: Iterator, spec: CropSpec) -> tuple[list[str], list[StudyCrops], np.ndarray]:
    """Ids, crops and labels of studies as `axial_studies` gives them."""
    ids, crops, labels = [], [], []
    for study_id, study, points, own in studies:
        ids.append(study_id)
        crops.append(extract_crops(study, points, spec))
        labels.append(own)
    return ids, crops, np.stack(labels)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with axial.csv, t1.csv and reference_oof.csv")
    parser.add_argument("--run", type=Path, help="folder of a trained classifier or an ensemble (default: the shipped)")
    parser.add_argument("--record", action="store_true", help="write the areas to the shipped classifier's made.json")
    args = parser.parse_args()
    predictor = Predictor(args.run)
    patients, areas = set(), {}
    for view, studies in ((AXIAL_T2, axial_studies(args.folder)), (SAGITTAL_T1, t1_studies(args.folder))):
        ids, crops, labels = collect(studies, predictor.spec)
        own = predictor.predict_crops(crops)
        prior = np.broadcast_to(weighted_prior(labels), own.shape)
        theirs = reference(args.folder, ids)
        known = np.isfinite(theirs).all(axis=-1)
        labels = np.where(known, labels, MISSING)
        table = measure(labels, {"ours": own, "reference": np.where(known[..., None], theirs, 1 / 3), "prior": prior})
        patients |= set(ids)
        own_rows = table[(table["prediction"] == "ours") & (table["measure"] == "AUC severe")].set_index("group")
        areas |= {WORDS[group]: round(own_rows.loc[group, "value"], 3) for group in WORDS if group in own_rows.index}
        print(f"\n{view} alone, {len(ids)} real patients")
        print(wide(table).to_string())
    if args.record and args.run is None:
        made = shipped_classifier() / MADE
        measured = {"patients": len(patients), "auc_severe": {word: areas[word] for word in WORDS.values()}}
        write_json(made, read_json(made) | {"measured_on_patients": measured})
        print(f"recorded in {made.name}: {measured}")
    return 0


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """Measures across, groups and predictions down, as text."""
    table = table.assign(cell=[f"{r.value:.3f} ({r.low:.3f}-{r.high:.3f})" for r in table.itertuples()])
    return table.pivot_table(
        index=["group", "labels", "prediction"], columns="measure", values="cell", aggfunc="first", sort=False
    )


if __name__ == "__main__":
    sys.exit(main())
