"""The picture of the shipped localizer on phantoms that it has never seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pydicom
from matplotlib.figure import Figure

from lumbar_utils import viz
from lumbar_utils.dicom.series import Series
from lumbar_utils.labels import AXIAL_T2, SAGITTAL_T1
from lumbar_utils.localization import DiscLocalizer, DiscPoints, LocalizationError, evaluate_points, read_reference
from lumbar_utils.phantom.cohort import generate_cohort
from lumbar_utils.studies.data import Study
from lumbar_utils.studies.study import CompetitionFolder

UNSEEN_SEED = 607_001
"""Of no training of the localizer."""
UNSEEN_STUDIES = 16


def localizer() -> Figure:
    """What the shipped localizer finds on phantoms it has never seen: usual contrasts above, bent ones below."""
    localizer = DiscLocalizer.shipped()
    found: dict[str, DiscPoints] = {}
    truth: dict[str, np.ndarray] = {}
    shown: dict[str, Study] = {}
    errors: dict[str, pd.DataFrame] = {}
    with TemporaryDirectory() as folder:
        for kind in ("usual", "randomised"):
            cohort = Path(folder) / kind
            options = {"seed": UNSEEN_SEED, "test_fraction": 0, "randomise": kind != "usual", "progress": False}
            generate_cohort(cohort, n_studies=UNSEEN_STUDIES, **options)
            known = read_reference(cohort / "truth" / "discs.csv")
            chosen: dict[str, Study] = {}
            names = []
            for series in sagittal_series(CompetitionFolder.open(cohort)):
                name = f"{kind} {series.study_id} {series.series_id}"
                names.append(name)
                truth[name] = known[series.study_id]
                try:
                    found[name] = localizer.locate_series(series)
                except LocalizationError:
                    continue  # counted as not found
                # The first of each contrast, and the first three that are randomised, whatever their errors are.
                caption = contrast(cohort, series) if kind == "usual" else f"randomised {len(names)}"
                if len(chosen) < 3:
                    chosen.setdefault(caption, Study(name, (series,), ()))
            shown |= chosen
            errors[f"{kind} scans, {len(names)} series"] = evaluate_points(found, {name: truth[name] for name in names})
    names = [study.study_id for study in shown.values()]
    return viz.show_found_discs(
        list(shown.values()),
        [found[name] for name in names],
        errors,
        truths=[truth[name] for name in names],
        captions=list(shown),
        title="The localizer that ships, on phantoms it has never seen",
        synthetic=True,
    )


def sagittal_series(folder: CompetitionFolder) -> Iterator[Series]:
    """All sagittal series of a cohort, T1 and T2 alike."""
    for study_id in folder.study_ids("train"):
        yield from (series for series in folder.load_study(study_id).series if series.view != AXIAL_T2)


def contrast(cohort: Path, series: Series) -> str:
    """What a radiologist would call it: the headers tell T2 from STIR, the competition's tables do not."""
    path = next((cohort / "train_images" / series.study_id / series.series_id).glob("*.dcm"))
    header = pydicom.dcmread(path, stop_before_pixels=True)
    if series.view == SAGITTAL_T1:
        return "Sagittal T1"
    return "Sagittal STIR" if float(header.get("InversionTime") or 0) > 0 else "Sagittal T2"
