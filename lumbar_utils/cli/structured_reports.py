"""`lumbar predict --sr DIR`: the predictions once more, as DICOM structured reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import inputs

if TYPE_CHECKING:
    from ..inference.submission import StudyPrediction
    from ..studies.study import StudySource


def check(folder: Path | None) -> None:
    """Raise at once, and not after an hour of work, what would keep the reports from being written into `folder`."""
    if folder is None:
        return
    from ..report.structured_report import require_highdicom

    require_highdicom()
    inputs.folder_to_write(folder, "--sr")


def write(
    folder: Path | None, predictions: Sequence[StudyPrediction], sources: Sequence[StudySource], *, network: str
) -> None:
    """Write a report a study into `folder` and say how many; nothing where no folder was asked for."""
    if folder is None:
        return
    from ..errors import counted
    from ..report.structured_report import write_structured_reports

    written, refused = write_structured_reports(predictions, sources, folder, network=network)
    reports = counted(len(written), "structured report", "structured reports")
    print(f"  {reports} in {folder}, with the patient's name as in the images")
    if refused:
        print(f"  {counted(len(refused))} got none, the first because {next(iter(refused.values()))}")
