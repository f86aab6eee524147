"""How far the 25 points of a study lie from the true ones, and how often on the right slice.

    python benchmarks/target_points.py                                  unseen phantoms of profile rsna, ten minutes
    python benchmarks/target_points.py --competition ../shared/real_rsna/competition     and the readers' points there

The canal points are the shipped localizer's, so errors of both stages are in the numbers. Scoliotic phantoms are
measured too: how far the canal points lie beside the canal before and after the second stage.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lumbar_utils.crops.target_points import locate_targets
from lumbar_utils.dicom.series import Series, Stack
from lumbar_utils.labels import (
    AXIAL_T2,
    CONDITIONS,
    FAMILIES,
    LEVELS,
    N_TARGETS,
    SAGITTAL_T1,
    SAGITTAL_T2,
    target_index,
)
from lumbar_utils.localization import DiscLocalizer, DiscPoints
from lumbar_utils.phantom.anatomy import Body
from lumbar_utils.phantom.disease import sample_person
from lumbar_utils.phantom.protocol import sample_protocols
from lumbar_utils.phantom.scanner import acquire
from lumbar_utils.studies.competition import CompetitionFolder
from lumbar_utils.studies.data import Study

SEED = 4721
VIEWS = (SAGITTAL_T2, SAGITTAL_T1, AXIAL_T2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bodies", type=int, default=30, help="ordinary people (default %(default)s)")
    parser.add_argument("--scoliotic", type=int, default=20, help="people with a scoliosis of 15 to 50 degrees")
    parser.add_argument("--competition", type=Path, help="a competition folder with readers' points")
    args = parser.parse_args()
    localizer = DiscLocalizer.shipped()
    rows, before, after, seconds = [], [], [], []
    for index in range(args.bodies + args.scoliotic):
        scoliotic = index >= args.bodies
        body, study = scan(index, scoliotic)
        discs = localizer.locate(study)
        began = time.process_time()
        found = locate_targets(study, discs)
        seconds.append(time.process_time() - began)
        truth = body.truth.places.reshape(N_TARGETS, 3)
        rows.append(errors(study, found, truth).assign(set="scoliotic" if scoliotic else "rsna"))
        if scoliotic:
            frame = DiscPoints("", "", body.truth.canal, np.ones(5))
            left = np.cross(frame.forward(), frame.tangents())
            for places, into in ((discs.points, before), (found.discs.points, after)):
                into.append(np.abs(((places - body.truth.canal) * left).sum(axis=1)))
    table = pd.concat(rows)
    for name, part in table.groupby("set"):
        print(f"phantoms, {name}\n{summary(part).to_string()}\n")
    for name, values in (("before", before), ("after", after)):
        if values:
            far = np.concatenate(values)
            near = f"{np.mean(far <= 3):.1%} within 3 mm, largest {far.max():.1f} mm"
            print(f"canal points beside the canal's middle, scoliotic, {name}: {near}")
    print(f"CPU seconds a study of the second stage: {np.median(seconds):.3f}")
    if args.competition:
        folder = CompetitionFolder.open(args.competition)
        for study_id in folder.study_ids("train"):
            study = folder.load_study(study_id)
            points = folder.world_points(study)
            truth = np.full((N_TARGETS, 3), np.nan)
            numbers: list[int | None] = [None] * N_TARGETS
            for row in points.itertuples():
                truth[target_index(row.condition, row.level)] = row.x, row.y, row.z
                numbers[target_index(row.condition, row.level)] = row.instance_number
            found = locate_targets(study, localizer.locate(study))
            print(f"\nstudy {study_id}\n{summary(errors(study, found, truth, numbers)).to_string()}")
    return 0


def scan(index: int, scoliotic: bool) -> tuple[Body, Study]:
    """A body and its three series in the resolution of the competition's."""
    rng = np.random.default_rng([SEED, index])
    person = sample_person(index, SEED)
    if scoliotic:
        degrees = rng.uniform(15, 50) * rng.choice([-1, 1])
        person = replace(person, scoliosis_degrees=degrees, rotation_degrees=degrees * rng.uniform(0.2, 0.9))
    body = Body(person)
    series = []
    for protocol in sample_protocols(body, rng, "rsna", views=VIEWS):
        stacks, first = [], 1
        for geometry, pixels in acquire(body, protocol, rng):
            numbers = tuple(range(first, first + len(geometry)))
            stacks.append(Stack(pixels.astype(np.float32), geometry, numbers, ()))
            first += len(geometry)
        series.append(Series("phantom", protocol.view, protocol.view, tuple(stacks)))
    return body, Study("phantom", tuple(series))


def errors(study: Study, found, truth: np.ndarray, numbers=None) -> pd.DataFrame:
    """One row a known point: mm, mm in the plane of its slice, how many slices off (nan where no slice shows it)."""
    rows = []
    for target in np.flatnonzero(np.isfinite(truth).all(axis=1)):
        off, through = np.nan, np.nan
        series = study.series_by_id(found.series_ids[target])
        if series is not None:
            number = found.instance_numbers[target]
            stack = next(stack for stack in series.stacks if number in stack.instance_numbers)
            own = stack.instance_numbers.index(number)
            if numbers is None:
                off = abs(own - int(stack.geometry.nearest_slice(truth[target])))
            elif numbers[target] in stack.instance_numbers:
                off = abs(own - stack.instance_numbers.index(numbers[target]))
            through = (found.points[target] - truth[target]) @ stack.geometry.normal
        distance = np.linalg.norm(found.points[target] - truth[target])
        plane = np.sqrt(max(distance**2 - np.nan_to_num(through) ** 2, 0))
        kind = next(name for name, members in FAMILIES.items() if target // 5 in members)
        row = {"kind": kind, "condition": CONDITIONS[target // 5], "level": LEVELS[target % 5], "mm": distance}
        row |= {"plane_mm": plane, "through_mm": abs(through), "slices": off, "confidence": found.confidence[target]}
        rows.append(row)
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Medians and shares by kind of point."""
    return (
        table.groupby("kind")
        .apply(
            lambda part: pd.Series(
                {
                    "points": len(part),
                    "median_mm": part["mm"].median(),
                    "p95_mm": part["mm"].quantile(0.95),
                    "in_plane_mm": part["plane_mm"].median(),
                    "through_mm": part["through_mm"].median(),
                    "right_slice": (part["slices"] == 0).mean(),
                    "within_one": (part["slices"] <= 1).mean(),
                    "confidence": part["confidence"].mean(),
                    "within_5mm": (part["mm"] <= 5).mean(),
                }
            ),
            include_groups=False,
        )
        .round(3)
    )


if __name__ == "__main__":
    sys.exit(main())
