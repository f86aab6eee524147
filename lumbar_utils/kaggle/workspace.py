"""Where a notebook finds its data and leaves its results, the same in a clone, after pip, and on Kaggle.

Data: the folder given; else the competition's among Kaggle's mounts; else a synthetic cohort beside the results,
made on first use. Results: the folder given; else `runs/demo` of the clone, or of the current folder. Localizer: that
of the run in use; else the one that ships with the library (`find_localizer`). On Kaggle each notebook runs in a
session of its own, so weights and crops of earlier ones are restored from their `runs/demo`, attached as their output.

Kaggle mounts a competition as `/kaggle/input/<slug>` or `/kaggle/input/competitions/<slug>`, a data set as
`/kaggle/input/<slug>` or `/kaggle/input/datasets/<owner>/<slug>`, depending on the image; owners also rename and
re-upload. So a folder is known by the tables that it holds, and is searched for.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from ..files import atomically

if TYPE_CHECKING:
    from ..studies.study import CompetitionFolder, StudySource

KAGGLE = Path(os.environ.get("LUMBAR_KAGGLE") or "/kaggle")
"""LUMBAR_KAGGLE is for rehearsals on machines where nothing can be mounted at `/kaggle`."""
KAGGLE_INPUT = KAGGLE / "input"
KAGGLE_WORKING = KAGGLE / "working"
COMPETITION_SLUG = "rsna-2024-lumbar-spine-degenerative-classification"
SERIES_TABLES = ("train_series_descriptions.csv", "test_series_descriptions.csv")
SEARCH_DEPTH = 3  # `datasets/<owner>/<slug>` is the deepest mount; below that lie hundreds of thousands of DICOM files
COHORT = "cohort"
FOLDS = 5
WEIGHTS = ("localizer", "classifier")
WEIGHTS_FILE, ENSEMBLE_FILE = "model.safetensors", "ensemble.json"
WEIGHTS_DEPTH = 5  # `datasets/<owner>/<slug>/runs/demo`
LINKED = ("crops", "crops_found")
"""Crops of earlier notebooks, some GB; `WEIGHTS` are copied, as they may be trained further."""


@dataclass(frozen=True)
class Workspace:
    """A data folder and a run folder, relative to the current one where that is shorter, to show no machine's paths."""

    data: CompetitionFolder
    run: Path

    @property
    def synthetic(self) -> bool:
        """Whether the studies are phantoms: every figure then says so."""
        return self.data.is_synthetic

    def sources(self, part: str, study_ids: list[str] | None = None) -> list[StudySource]:
        """Studies of the "train" or "test" part, all or those named, in the order of the names."""
        from ..studies.study import find_studies

        found = {source.study_id: source for source in find_studies(self.data.root, part=part)}
        absent = [s for s in study_ids or () if s not in found]
        if absent:
            raise DataError(f"{len(absent)} studies are not in the {part} part, the first is {absent[0]!r}")
        return [found[s] for s in study_ids] if study_ids is not None else list(found.values())

    def on_disk(self, part: str) -> list[str]:
        """Listed studies of a part whose folder is there; the real tables are often looked at without the images."""
        images = self.data.root / f"{part}_images"
        return [study_id for study_id in self.data.study_ids(part) if (images / study_id).is_dir()]

    def split(self, fold: int = 0, *, fold_seed: int = 0) -> tuple[list[str], list[str]]:
        """Labelled studies of the train part as (training, held out), one fifth held out, labels spread evenly; the
        same in all notebooks, so that a held-out study is held out from the localizer and the classifier alike."""
        return split_studies(self.data, fold, fold_seed=fold_seed)


def split_studies(
    folder: CompetitionFolder, fold: int = 0, *, folds: int = FOLDS, fold_seed: int = 0
) -> tuple[list[str], list[str]]:
    """Labelled studies of the train part as (training, held out), fold number `fold` of `folds` held out, folds as in
    `training.fit`. Raises `DataError` without such a fold, and with fewer labelled studies than folds."""
    from ..training.datasets import folds_by_study

    if not 0 <= fold < folds:
        raise DataError(f"fold must lie between 0 and {folds - 1}, got {fold}")
    labelled = set() if folder.labels is None else set(folder.labels["study_id"])
    ids = [s for s in folder.study_ids("train") if s in labelled]
    if len(ids) < folds:
        raise DataError(f"{folder.root}: {len(ids)} labelled studies, expected at least {folds} to train on")
    number = folds_by_study(folder.labels, folds, seed=fold_seed)
    return [s for s in ids if number[s] != fold], [s for s in ids if number[s] == fold]


def find_weights(name: str, given: str | Path = "", run: str | Path = "") -> Path:
    """The folder of trained weights `name` ("localizer" or "classifier").

    Looked for in the folder given, then in the run folder, then in every data set attached on Kaggle; a classifier that
    is in none of them is the one that ships with the library, unless a folder is given. A classifier may be a single
    run or an ensemble, a folder with `ensemble.json`; one that lies above other runs goes before them.
    Raises `DataError` when there are none, with the places that were looked at.
    """
    mounts = sorted(mounted_folders(KAGGLE_INPUT, WEIGHTS_DEPTH), key=lambda p: (len(p.parts), str(p)))
    attached = [p for p in mounts if any((p / name).exists() for name in (*WEIGHTS, ENSEMBLE_FILE))]
    roots = [Path(given)] if given else [Path(run), *attached]
    files = (WEIGHTS_FILE, ENSEMBLE_FILE) if name == "classifier" else (WEIGHTS_FILE,)
    for root in roots:
        if name == "classifier" and (root / ENSEMBLE_FILE).is_file():
            return root
        # A folder that is given may have any name but that of other weights.
        own = root.name == name or (bool(given) and root.name not in WEIGHTS)
        for folder in (root / name, root) if own else (root / name,):
            if any((folder / file).is_file() for file in files):
                return folder
    if name == "classifier" and not given:
        from ..models import run_folder

        if run_folder.SHIPPED_CLASSIFIER.is_dir():
            return run_folder.SHIPPED_CLASSIFIER
    looked = ", ".join(str(root / name) for root in roots)
    raise DataError(
        f"no weights of a {name}: expected {' or '.join(files)} in one of {looked}; train it with "
        "notebooks 02 to 04, `make run` or `lumbar train`"
    )


def find_localizer(run: str | Path = "") -> Path | None:
    """The folder of the localizer that goes with a run; None for the one that ships with the library.

    `localizer/` in the run folder, where notebook 02 or `lumbar train localizer` wrote it. No other place is searched:
    without weights named, the shipped ones are used, and not what lies in some attached data set.
    """
    folder = Path(run) / "localizer"
    return folder if str(run) and (folder / WEIGHTS_FILE).is_file() else None


def find_competition_folder(root: Path | str = KAGGLE_INPUT) -> Path | None:
    """The competition's folder among the mounts in `root`, or None: it holds one of `SERIES_TABLES`; the one of the
    competition's own name comes first, then the one nearest to the root."""
    found = [folder for folder in mounted_folders(Path(root), SEARCH_DEPTH) if holds_competition_tables(folder)]
    return min(found, key=lambda path: (path.name != COMPETITION_SLUG, len(path.parts), str(path)), default=None)


def holds_competition_tables(folder: Path | str) -> bool:
    """Whether a folder looks like the competition's: at least one table of series descriptions lies in it."""
    return any((Path(folder) / name).is_file() for name in SERIES_TABLES)


def mounted_folders(root: Path, depth: int) -> list[Path]:
    """`root` and its folders down to `depth`, without going into folders that hold the competition's tables."""
    if not root.is_dir():
        return []
    found = [root]
    if depth == 0 or holds_competition_tables(root):
        return found
    try:
        children = sorted(child for child in root.iterdir() if child.is_dir())
    except PermissionError:
        return found
    return found + [folder for child in children for folder in mounted_folders(child, depth - 1)]


def open_workspace(
    data: str | Path = "",
    run: str | Path = "",
    *,
    n_studies: int = 200,
    seed: int = 0,
    n_jobs: int = -1,
    progress: bool = True,
) -> Workspace:
    """Find the data and the run folder; a synthetic cohort is made when there are no data anywhere.

    data, run: empty for the defaults in the module's docstring; n_studies, seed: of the synthetic cohort, one that is
    there already is used as it is; n_jobs: processes to make it with, -1 for one per core.
    """
    from ..studies.competition import CompetitionFolder

    folder = run_folder(run)
    found = find_data(data, run)
    if found is None:
        from ..phantom.cohort import generate_cohort

        found = folder / COHORT
        generate_cohort(found, n_studies=n_studies, seed=seed, n_jobs=n_jobs, progress=progress)
    restore_weights(folder)
    return Workspace(CompetitionFolder.open(short_path(found)), folder)


def run_folder(run: str | Path = "") -> Path:
    """Where results go: the folder given, else the default in the module's docstring."""
    if run:
        return short_path(Path(run))
    here = Path.cwd()
    clone = next((p for p in (here, here.parent) if (p / "lumbar_utils").is_dir() and (p / "notebooks").is_dir()), here)
    return short_path(clone / "runs" / "demo")


def find_data(data: str | Path = "", run: str | Path = "") -> Path | None:
    """The data folder that `open_workspace` would use; None where it would make a synthetic cohort first."""
    if data:
        return Path(data)
    cohort = run_folder(run) / COHORT
    return find_competition_folder() or (cohort if (cohort / "train.csv").is_file() else None)


def restore_weights(run: Path) -> list[Path]:
    """On Kaggle: copy weights, link crops that earlier notebooks, attached as their output, left in a run folder of
    that name. Nothing that is there already is replaced. Returns the folders restored from."""
    earlier = Path("runs", run.resolve().name)
    restored = []
    for folder in mounted_folders(KAGGLE_INPUT, WEIGHTS_DEPTH):
        for name in (*WEIGHTS, *LINKED) if Path(*folder.parts[-2:]) == earlier else ():
            if not (folder / name).is_dir() or (run / name).exists():
                continue
            run.mkdir(parents=True, exist_ok=True)
            if name in WEIGHTS:
                part = run / f".{name}.part"  # half a copy must never look like a whole one
                shutil.rmtree(part, ignore_errors=True)
                shutil.copytree(folder / name, part, copy_function=shutil.copyfile)
                part.rename(run / name)
            else:
                (run / name).symlink_to(folder / name, target_is_directory=True)
            restored.append(folder / name)
    return restored


def short_path(path: Path) -> Path:
    """Relative to the current folder where that is shorter, to show no machine's folders in messages; not Kaggle's."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive on Windows
        return path
    shorter = KAGGLE_INPUT not in path.parents and len(relative) < len(str(path.absolute()))
    return Path(relative) if shorter else path


def copy_submission(submission: Path | str) -> Path | None:
    """On Kaggle: copy the submission to `/kaggle/working/submission.csv`, where it is looked for. Elsewhere: None."""
    if not KAGGLE_WORKING.is_dir():
        return None
    target = KAGGLE_WORKING / "submission.csv"
    if Path(submission).resolve() != target.resolve():
        atomically(target, lambda part: shutil.copyfile(submission, part))
    return target
