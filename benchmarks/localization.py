"""How good and how quick the shipped localizer is, on phantoms that it has never seen and on real series if given.

    python benchmarks/localization.py                          cohorts in runs/benchmark, about ten minutes on two cores
    python benchmarks/localization.py --real ../shared/real_mri

Three cohorts of unseen seeds: profile rsna, profile demo, and people, contrasts and artefacts far beyond reality. Every
sagittal series is located by itself, so T2, STIR and T1 have a row each. The time is from a folder of DICOM files to
points, on all cores. A folder of real series needs a points.csv (see notebook 02); nothing of its images is shown.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lumbar_utils.labels import SAGITTAL_T1, SAGITTAL_T2
from lumbar_utils.localization import (
    DiscLocalizer,
    LocalizationError,
    calibration_error,
    evaluate_points,
    locate_folders,
    read_reference,
    summary,
)
from lumbar_utils.phantom.cohort import generate_cohort
from lumbar_utils.studies.study import find_studies, load_study

COHORTS = {
    "rsna": {"n_studies": 40, "seed": 4711, "profile": "rsna"},
    "randomised": {"n_studies": 200, "seed": 4712, "randomise": True},
    "demo": {"n_studies": 80, "seed": 4713},
}
REPORTED = (
    *("studies", "levels", "median_mm", "within_5mm"),
    *("studies_shifted", "studies_shifted_unflagged", "studies_low_confidence", "studies_not_found"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=Path, default=ROOT / "runs" / "benchmark", help="made there, and reused")
    parser.add_argument("--real", type=Path, help="folder of real series with a points.csv")
    args = parser.parse_args()
    localizer = DiscLocalizer.shipped()
    rows, seconds = {}, {}
    for name, settings in COHORTS.items():
        root = args.cohorts / name
        generate_cohort(root, **settings, n_jobs=-1, progress=sys.stderr.isatty())
        errors, seconds[name] = measure(root, localizer)
        for kind, table in errors.items():
            found = summary(table)
            rows[f"{name}, {kind}"] = {key: found[key] for key in REPORTED} | {"ECE": calibration_error(table)}
    with pd.option_context("display.width", 200, "display.max_columns", 20):
        print(pd.DataFrame(rows).T.round(4).to_string())
        print("\nseconds from a series' DICOM files to its points (mean, largest)")
        print(
            pd.DataFrame({name: times.agg(["mean", "max"]) for name, times in seconds.items()}).T.round(3).to_string()
        )
    if args.real:
        reference = read_reference(args.real / "points.csv", point="posterior", study_column="case")
        found, _ = locate_folders({case: args.real / case for case in reference}, localizer, progress=False)
        print("\nreal series, synthetic training only")
        print(pd.Series(summary(evaluate_points(found, reference))).round(4).to_string())
    return 0


def measure(root: Path, localizer: DiscLocalizer) -> tuple[dict[str, pd.DataFrame], pd.Series]:
    """Errors of all studies, and of their series by kind; seconds of each series."""
    truth = read_reference(root / "truth" / "discs.csv")
    found: dict[str, dict] = {"study": {}, "T2": {}, "STIR": {}, "T1": {}}
    expected: dict[str, dict] = {kind: {} for kind in found}
    seconds = []
    for part in ("train", "test"):
        for source in find_studies(root, part=part, progress=False):
            study = load_study(source)
            points = truth[study.study_id]
            expected["study"][study.study_id] = points
            with suppress(LocalizationError):  # what is not found counts as not found
                found["study"][study.study_id] = localizer.locate(study)
            for series in study.series:
                if series.view not in (SAGITTAL_T1, SAGITTAL_T2):
                    continue
                inverted = (series.header.get("InversionTime") or 0) > 0
                kind = "T1" if series.view == SAGITTAL_T1 else "STIR" if inverted else "T2"
                name = f"{study.study_id} {series.series_id}"
                began = time.perf_counter()
                alone = load_study(find_studies(root / f"{part}_images" / study.study_id / series.series_id)[0])
                expected[kind][name] = points
                with suppress(LocalizationError):
                    found[kind][name] = localizer.locate_series(alone.series[0])
                seconds.append(time.perf_counter() - began)
    return {kind: evaluate_points(found[kind], expected[kind]) for kind in found if expected[kind]}, pd.Series(seconds)


if __name__ == "__main__":
    sys.exit(main())
