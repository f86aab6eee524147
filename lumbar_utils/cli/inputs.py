"""What the commands read and write: paths, tables, discs, and where weights lie."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from ..crops import CropSpec
    from ..localization import DiscLocalizer, DiscPoints
    from ..studies import CompetitionFolder, StudySource

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
    path = data_path(path)
    from ..studies import CompetitionFolder

    return CompetitionFolder.open(path)


def weights_folder(name: str, given: Path) -> Path:
    """Where trained weights of that name lie in the run given."""
    from ..kaggle import find_weights

    if not given.is_dir():
        raise DataError(f"{given} is not a folder; expected a run folder with {name}/ in it")
    return find_weights(name, given)


def classifier_folder(given: Path | None) -> Path:
    """Where the classifier lies: in the run given, else the one in the library, where there is one, whatever was
    trained before; else in the demo run or attached on Kaggle."""
    from ..kaggle import find_weights
    from ..models import run_folder

    if given is not None:
        return weights_folder("classifier", given)
    shipped = run_folder.SHIPPED_CLASSIFIER
    return shipped if shipped.is_dir() else find_weights("classifier", run=DEFAULT_RUN)


def localizer_folder(given: Path | None, *, run: Path | None = None) -> Path | None:
    """Where the localizer lies: in the folder given, which must hold one, else in the run in use; None: the shipped
    one. Never in `runs/demo` unasked: `lumbar localize` gives everybody the same points, whatever was trained there
    before."""
    from ..kaggle import find_localizer

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
    out_of_fold: bool = False,
    n_jobs: int = 1,
    progress: bool,
) -> Mapping[str, DiscPoints]:
    """The discs of studies, from points (see `read_any_points`), or found now by the localizer in that folder;
    `out_of_fold`: studies that this localizer was trained on are located by the shipped one."""
    from .. import localization

    if points is not None:
        return localization.read_any_points(points, sources, n_jobs=n_jobs, progress=progress)
    network = open_localizer(localizer)
    locate = localization.locate_out_of_fold if out_of_fold else localization.locate_studies
    found = locate(sources, network, n_jobs=n_jobs, progress=progress)[0]
    print_low_confidence(found)
    return found


def print_low_confidence(found: Mapping[str, DiscPoints]) -> None:
    """Name the studies whose level labelling has low confidence, if there are any."""
    from ..localization import low_confidence_message

    if message := low_confidence_message(found):
        print(f"  {message}")


def crop_spec(size: int | None) -> CropSpec:
    """The boxes to cut, with so many samples across; None: the usual ones."""
    from ..crops import CropSpec

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
    """A submission, and the reference scores known for it: of the folder of a trained classifier, or the run folder
    above it, the out-of-fold predictions and what its manifest holds; of a table none. `DataError` when there are none.
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


def check_table(path: Path) -> None:
    """Raise `DataError` at once, and not after an hour of work, when a result cannot be written to the path."""
    if path.is_dir():
        raise DataError(f"{path} is a folder; --out names the file to write, such as {path / 'result.csv'}")
    from ..files import refuse_special

    refuse_special(path)
    if path.exists() and not os.access(path, os.W_OK):
        raise DataError(f"{path} may not be written; choose another file, or ask for the right to")
    check_folder(path.parent, "--out")


def check_folder(path: Path, option: str) -> None:
    """Raise `DataError` at once when a folder of results is a file, cannot be made or may not be written."""
    there = next((folder for folder in (path, *path.parents) if folder.exists()), Path("."))
    if not there.is_dir():
        raise DataError(f"{there} is a file, expected a folder; choose another place for {option}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise DataError(f"nothing may be written in {there}; choose another place for {option}")
