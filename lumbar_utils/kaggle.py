"""Where the data are, what the machine can do, and the data set to upload.

Kaggle mounts a competition either as `/kaggle/input/<slug>` or as `/kaggle/input/competitions/<slug>`, and a
data set as `/kaggle/input/<slug>` or `/kaggle/input/datasets/<owner>/<slug>`, depending on the image. Owners
also rename and re-upload. So a folder is known by the tables that it holds, and is searched for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DataError

if TYPE_CHECKING:
    from .devices import Compute

KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_WORKING = Path("/kaggle/working")
COMPETITION_SLUG = "rsna-2024-lumbar-spine-degenerative-classification"
SERIES_TABLES = ("train_series_descriptions.csv", "test_series_descriptions.csv")
METADATA, WEIGHTS = "dataset-metadata.json", "model.safetensors"
SEARCH_DEPTH = 3
"""`datasets/<owner>/<slug>` is the deepest mount; below that lie hundreds of thousands of DICOM files."""
REPORTED_PACKAGES = ("torch", "torchvision", "timm", "timm-3d", "pydicom", "numpy", "pandas", "albumentations")


def find_competition_folder(root: Path | str = KAGGLE_INPUT) -> Path | None:
    """The competition's folder among Kaggle's mounts, or None.

    Parameters
    ----------
    root : path-like
        Where the mounts lie. A folder counts when it holds one of `SERIES_TABLES`; the one that carries the
        competition's own name comes first, then the one nearest to the root.
    """
    found = [folder for folder in mounted_folders(Path(root), SEARCH_DEPTH) if holds_competition_tables(folder)]
    found.sort(key=lambda folder: (folder.name != COMPETITION_SLUG, len(folder.parts), str(folder)))
    return found[0] if found else None


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


@dataclass(frozen=True)
class Machine:
    """What there is to compute with. `str(machine)` is a short report.

    Attributes
    ----------
    compute : Compute
        Device and precision, with the reason.
    cores : int
        CPU cores that this process may use.
    memory_gb, free_disk_gb : float
        Main memory, and the space left where the process stands; nan when unknown.
    versions : dict of str to str
    """

    compute: Compute
    cores: int
    memory_gb: float
    free_disk_gb: float
    versions: dict[str, str]

    def __str__(self) -> str:
        packages = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return "\n".join(
            (
                packages,
                str(self.compute),
                f"{self.cores} cores, {self.memory_gb:.0f} GB memory, {self.free_disk_gb:.0f} GB disk free",
            )
        )


def describe_machine(folder: Path | str = ".") -> Machine:
    """Versions, device and precision with the reasons, cores, memory, and disk space free at `folder`."""
    from .devices import choose_compute

    return Machine(
        compute=choose_compute(),
        cores=available_cores(),
        memory_gb=_memory_gb(),
        free_disk_gb=shutil.disk_usage(folder).free / 1e9,
        versions={"Python": platform.python_version()} | {p: _version(p) for p in REPORTED_PACKAGES},
    )


def available_cores() -> int:
    """CPU cores that this process may use; fewer than the machine's in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hand_in(submission: Path | str) -> Path | None:
    """On Kaggle: copy the submission to `/kaggle/working/submission.csv`, where it is looked for. Elsewhere: None."""
    if not KAGGLE_WORKING.is_dir():
        return None
    target = KAGGLE_WORKING / "submission.csv"
    if Path(submission).resolve() != target.resolve():
        unfinished = target.with_name(target.name + ".part")
        shutil.copyfile(submission, unfinished)
        os.replace(unfinished, target)
    return target


def build_dataset(out: Path | str, run: Path | str, *, owner: str = "OWNER", slug: str = "lumbar-utils") -> Path:
    """Make the folder to upload as a Kaggle data set: library, timm-3d (Kaggle's image lacks it), weights.

    The disc finder that ships travels inside the library; the one in the run, if there is one, is packed beside the
    classifier that goes with it, and wins. Of a classifier with several networks all members are packed.
    Upload it with `kaggle datasets create -p OUT --dir-mode zip`. The notebooks find library and weights in it.

    Parameters
    ----------
    out : path-like
        Folder to make; what an earlier call left there is replaced.
    run : path-like
        Run folder with `classifier/`, and `localizer/` where the run has a disc finder of its own.
    owner, slug : str
        Of the data set, for `dataset-metadata.json`.

    Raises
    ------
    DataError
        When the run lacks a classifier or one of its members, its disc finder cannot be read, there is no disc finder
        at all, timm-3d is not installed, or `out` holds something else.
    """
    from .ensembles import member_folders
    from .locating import open_localizer

    out, classifier, localizer = Path(out), Path(run) / "classifier", Path(run) / "localizer"
    lacking = [folder for folder in member_folders(classifier) if not (folder / WEIGHTS).is_file()]
    if lacking:
        raise DataError(f"no weights in {lacking[0]}; train first (`make run`)")
    fine_tuned = (localizer / WEIGHTS).is_file()
    # Read now what will be read there, offline and too late.
    open_localizer(localizer if fine_tuned else None)
    timm_3d = importlib.util.find_spec("timm_3d")
    if timm_3d is None or timm_3d.origin is None:
        raise DataError("timm-3d is not installed here, so it cannot be packed: pip install timm-3d")
    if out.is_dir() and any(out.iterdir()) and not (out / METADATA).is_file():
        raise DataError(f"{out} is not empty and holds no {METADATA}; give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    clean = shutil.ignore_patterns("__pycache__", "*.pyc", "checkpoint.safetensors", ".*")
    shutil.rmtree(out / localizer.name, ignore_errors=True)  # an earlier run's must not be taken for this one's
    packed = (classifier, localizer) if fine_tuned else (classifier,)
    for folder in (Path(__file__).parent, Path(timm_3d.origin).parent, *packed):
        shutil.rmtree(out / folder.name, ignore_errors=True)
        shutil.copytree(folder, out / folder.name, ignore=clean)
    about = {"title": slug, "id": f"{owner}/{slug}", "licenses": [{"name": "other"}]}
    (out / METADATA).write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    return out


def _memory_gb() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):
        return float("nan")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
