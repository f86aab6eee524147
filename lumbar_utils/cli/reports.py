"""`lumbar predict --report DIR`: the predictions once more, as pages to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import inputs

if TYPE_CHECKING:
    from ..inference.predictor import Predictor
    from ..inference.submission import StudyPrediction
    from ..report import ReportFolder
    from ..studies.study import StudySource


def check(folder: Path | None) -> None:
    """Raise at once, and not after an hour of work, when reports cannot be written into `folder`."""
    if folder is not None:
        _open(folder)


def write(
    folder: Path | None,
    predictions: Sequence[StudyPrediction],
    sources: Sequence[StudySource],
    predictor: Predictor,
    run: Path,
    *,
    n_jobs: int,
    progress: bool,
) -> None:
    """Write a report a study and the index, and say how many; nothing where no folder was asked for."""
    if folder is None:
        return
    reports = _open(folder, graded_by(predictor, run))
    reports.add_all(sources, predictions, predictor.spec, n_jobs=n_jobs, progress=progress)
    print(f"  {reports.written} reports, {len(reports.failures)} failed; open {reports.finish()}")


def graded_by(predictor: Predictor, run: Path) -> dict:
    """What a report says about the networks that graded; folders by their names, since a path may name a person."""
    from ..localization import localizer_origin
    from ..models.ensemble import name_of, run_of

    folder = inputs.localizer_folder(None, run=run_of(run))
    localizer = localizer_origin(predictor.localizer, folder and Path(folder.parent.name, folder.name))
    return {
        "name": name_of(run),
        "networks": len(predictor.models),
        "mirrored": predictor.mirror,
        "calibrated": predictor.calibration is not None,
        "disc_localizer": localizer.removeprefix("localizer: "),
    }


def _open(folder: Path, model: dict | None = None) -> ReportFolder:
    from ..report import ReportFolder

    return ReportFolder(folder, model=model)
