"""What the commands read and write: paths, tables, studies, and where weights lie."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from ..localizer import DiscPoints
    from ..study import CompetitionFolder, StudySource

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
    from ..study import CompetitionFolder

    return CompetitionFolder.open(data_path(path))


def studies_of(folder: CompetitionFolder, part: str) -> list[StudySource]:
    """The studies of one part of a competition folder."""
    from ..study import find_studies

    return find_studies(folder.root, part=part)


def jobs(wanted: int | None) -> int:
    """Number of worker processes: as wanted, else one per core."""
    from ..kaggle import available_cores

    return wanted or available_cores()


def weights_folder(name: str, given: Path | None) -> Path:
    """Where the "localizer" or the "classifier" lies: in the run given, else the demo run, else attached on Kaggle."""
    from ..workspace import find_weights

    if given is not None and not given.is_dir():
        raise DataError(f"{given} is not a folder; expected a run folder with {name}/ in it")
    return find_weights(name, given or "", DEFAULT_RUN)


def marked(discs: DiscPoints) -> np.ndarray:
    """Points (5, 3) that somebody marked; nan where they were only filled in between others."""
    import numpy as np

    return np.where(np.array([flag == "" for flag in discs.flags])[:, None], discs.points, np.nan)


def discs_of(
    sources: Sequence[StudySource], *, points: Path | None, weights: Path | None, progress: bool
) -> Mapping[str, DiscPoints]:
    """The discs of studies, from a table that `lumbar localize` wrote or found now."""
    from ..localizer import DiscLocalizer, read_points
    from ..locating import locate_studies

    if points is not None:
        return read_points(points)
    localizer = DiscLocalizer.load(weights_folder("localizer", weights))
    return locate_studies(sources, localizer, progress=progress)[0]


def read_csv(path: Path) -> pd.DataFrame:
    """A table with its ids as text; raises `DataError` when it is not one."""
    import pandas as pd

    if path.is_dir():
        raise DataError(f"{path} is a folder, expected a CSV file")
    try:
        return pd.read_csv(path, dtype={"study_id": str, "series_id": str, "row_id": str})
    except ValueError as error:  # pandas' own parser errors and wrong encodings are ValueErrors
        raise DataError(f"{path}: cannot be read as a CSV table: {error}") from error


def predicted_part(solution: pd.DataFrame, submission: pd.DataFrame) -> pd.DataFrame:
    """The rows of a solution, in either form, of those studies that a submission names."""
    if "row_id" not in submission.columns:
        raise DataError(f"the submission lacks the column row_id, it has {list(submission.columns)[:5]}")
    from ..labels import split_row_id

    predicted = {split_row_id(row_id)[0] for row_id in submission["row_id"].astype(str)}
    if "row_id" in solution.columns:
        ids = [split_row_id(row_id)[0] for row_id in solution["row_id"].astype(str)]
    elif "study_id" in solution.columns:
        ids = solution["study_id"].tolist()
    else:
        return solution
    kept = solution[[study_id in predicted for study_id in ids]]
    if kept.empty:
        raise DataError(f"none of the {len(predicted)} predicted studies is in the solution")
    return kept


def read_json(path: Path) -> dict:
    """A JSON object; raises `DataError` when the file is none."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected a JSON object with fields of the configuration, got {type(values).__name__}")
    return values
