"""What the commands read and write: paths, tables, studies, and where weights lie."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from ..crops.extraction import CropSpec
    from ..localization import DiscLocalizer, DiscPoints
    from ..studies.study import CompetitionFolder, StudySource

logger = logging.getLogger(__name__)

DEFAULT_RUN = Path("runs/demo")


def data_path(path: Path | None) -> Path:
    """The path given, or the competition's data on Kaggle; raises `DataError` when there is neither."""
    from ..kaggle import find_competition_folder

    if path is None:
        path = find_competition_folder()
        if path is None:
            raise DataError("no PATH given, and no competition data among Kaggle's mounts (/kaggle/input)")
        print(f"using {path}")
    if not path.exists():
        raise DataError(f"{path} does not exist; expected a folder of DICOM files or a competition folder")
    return path


def competition(path: Path | None) -> CompetitionFolder:
    """A competition folder; raises `DataError` when the path is not one."""
    from ..studies.study import CompetitionFolder

    return CompetitionFolder.open(data_path(path))


def studies_of(folder: CompetitionFolder, part: str) -> list[StudySource]:
    """The studies of one part of a competition folder."""
    from ..studies.study import find_studies

    return find_studies(folder.root, part=part)


def jobs(wanted: int | None) -> int:
    """Number of worker processes: as wanted, else one per core."""
    from ..kaggle import available_cores

    return wanted or available_cores()


def weights_folder(name: str, given: Path | None) -> Path:
    """Where trained weights of that name lie: in the run given, else the demo run, else attached on Kaggle."""
    from ..kaggle.workspace import find_weights

    if given is not None and not given.is_dir():
        raise DataError(f"{given} is not a folder; expected a run folder with {name}/ in it")
    return find_weights(name, given or "", DEFAULT_RUN)


def localizer_folder(given: Path | None, *, run: Path | None = None) -> Path | None:
    """Where the localizer lies: in the folder given, else in the run in use; None: the shipped one.

    A folder that is given must hold one. `runs/demo` is not looked at unless it is given or in use: `lumbar localize`
    gives everybody the same points, whatever was trained in the current folder before.
    """
    from ..kaggle.workspace import find_localizer

    return weights_folder("localizer", given) if given is not None else find_localizer(run or "")


def open_localizer(folder: Path | None) -> DiscLocalizer:
    """The localizer in the folder, or the shipped one; prints which it is."""
    from .. import localization

    localizer = localization.open_localizer(folder)
    print(localization.localizer_origin(localizer, folder))
    return localizer


def discs_of(
    sources: Sequence[StudySource],
    *,
    points: Path | None,
    localizer: Path | None,
    held_out: Sequence[str] = (),
    n_jobs: int = 1,
    progress: bool,
) -> Mapping[str, DiscPoints]:
    """The discs of studies, from a table that `lumbar localize` wrote, or found now by the localizer in that folder.

    A localizer that has learnt from studies of `held_out` is used, with a warning.
    """
    from ..localization import locate_studies, low_confidence_message, read_points, warn_of_studies_learnt_from

    if points is not None:
        return read_points(points)
    localizer = open_localizer(localizer)
    warn_of_studies_learnt_from(localizer, held_out)
    found = locate_studies(sources, localizer, n_jobs=n_jobs, progress=progress)[0]
    if low_confidence_message(found):
        print(f"  {low_confidence_message(found)}")
    return found


def crop_spec(size: int | None) -> CropSpec:
    """The boxes to cut, with so many samples across; None: the usual ones."""
    from ..crops.extraction import CropSpec

    return CropSpec() if size is None else CropSpec.of_size(size)


def read_csv(path: Path) -> pd.DataFrame:
    """A table with its ids as text; raises `DataError` when it is not one."""
    import pandas as pd

    if path.is_dir():
        raise DataError(f"{path} is a folder, expected a CSV file")
    try:
        return pd.read_csv(path, dtype={"study_id": str, "series_id": str, "row_id": str})
    except ValueError as error:  # pandas' own parser errors and wrong encodings are ValueErrors
        raise DataError(f"{path}: cannot be read as a CSV table: {error}") from error


def predictions(path: Path) -> tuple[pd.DataFrame, Mapping[str, Mapping[str, float]]]:
    """A submission, and the reference scores that are known for it.

    A table has none. Of the folder of a trained classifier, or the run folder above it, the out-of-fold predictions
    are read, with the scores of the same studies in its manifest. Raises `DataError` when there are no predictions.
    """
    if not path.is_dir():
        return read_csv(path), {}
    from ..files import read_json
    from ..models.run_folder import MANIFEST, OOF

    folder = next((folder for folder in (path, path / "classifier") if (folder / OOF).is_file()), None)
    if folder is None:
        raise DataError(f"{path} is a folder without {OOF}; expected a CSV file or the folder of a trained classifier")
    scores = read_json(folder / MANIFEST).get("scores", {}) if (folder / MANIFEST).is_file() else {}
    return read_csv(folder / OOF), {name: scores[name] for name in ("calibrated", "weighted_prior") if name in scores}


def class_weights_of(run: Path) -> tuple[float, float, float]:
    """The weights of the three grades in the loss of the networks behind `predictions`; of a table the metric's."""
    from ..labels import SEVERITY_WEIGHTS
    from ..models.ensemble import member_folders
    from ..models.run_folder import RunConfig

    if not run.is_dir():
        return SEVERITY_WEIGHTS
    folder = run if not (run / "classifier").is_dir() else run / "classifier"
    trained = RunConfig.load(member_folders(folder)[0]).training
    return SEVERITY_WEIGHTS if trained.get("class_weights", True) else (1.0, 1.0, 1.0)


def table_to_write(path: Path) -> Path:
    """The path of a result; raises `DataError` at once, and not after an hour of work, when it cannot be written."""
    if path.is_dir():
        raise DataError(f"{path} is a folder; --out names the file to write, such as {path / 'result.csv'}")
    if path.exists() and not os.access(path, os.W_OK):
        raise DataError(f"{path} may not be written; choose another file, or ask for the right to")
    folder_to_write(path.parent, "--out")
    return path


def folder_to_write(path: Path, option: str) -> Path:
    """The folder of results; raises `DataError` at once when it is a file, cannot be made or may not be written."""
    there = next((folder for folder in (path, *path.parents) if folder.exists()), Path("."))
    if not there.is_dir():
        raise DataError(f"{there} is a file, expected a folder; choose another place for {option}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise DataError(f"nothing may be written in {there}; choose another place for {option}")
    return path
