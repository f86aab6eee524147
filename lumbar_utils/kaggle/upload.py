"""What is uploaded: a data set with library, wheels and the weights of a run, and the notebooks as kernels.

What a notebook needs of those before it comes as their output, attached (`kernel_sources`). Nothing needs the internet:
the library's data set brings what Kaggle's image lacks.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..errors import DataError
from ..files import write_json
from .session import WHEELS, library_folder
from .wheels import KAGGLE_PYTHON, collect_wheels
from .workspace import COMPETITION_SLUG, WEIGHTS_FILE

METADATA, KERNEL_METADATA = "dataset-metadata.json", "kernel-metadata.json"
SLUG = "lumbar-utils"
SUBTITLE = "Lumbar spine MRI graded level by level: library, weights, wheels"
"""Kaggle wants 20 to 80 characters."""
DESCRIPTION = """\
The library `lumbar_utils` (MIT licence) with its localizer, wheels of what Kaggle's image lacks (`wheels/`, each
under its own licence, named in its metadata), and, where they were packed, the weights of a trained classifier. Attach
it to a notebook; no internet is needed. Research software: not a medical device, not for diagnosis.
"""
ACCELERATOR = "NvidiaTeslaT4"
"""Two T4. Kaggle's P100 is no longer served by its image's torch."""
NEEDS = {"01": (), "02": (), "03": ("02",), "04": ("02", "03"), "05": ("02", "04"), "06": ("02", "03", "04")}
"""Whose output a notebook reads, by number; `workspace.open_workspace` copies it into the run folder."""
ON_CPU = ("01", "06")


def build_dataset(
    out: Path | str,
    run: Path | str | None = None,
    *,
    owner: str = "OWNER",
    slug: str = SLUG,
    python: str = KAGGLE_PYTHON,
    offline: bool = False,
) -> tuple[Path, dict[str, str]]:
    """Make the folder to upload as a Kaggle data set: library, wheels of what Kaggle's image lacks, weights.

    The shipped localizer is part of the library; the one in the run, if there is one, is packed beside the classifier
    that goes with it, and is used instead. Of a classifier with several networks all members are packed.
    Upload it with `kaggle datasets create -p OUT --dir-mode zip`. The notebooks find library and weights in it.

    Parameters
    ----------
    out : path-like
        Folder to make; what an earlier call left there is replaced.
    run : path-like or None
        Run folder with `classifier/`, and `localizer/` where the run has a localizer of its own. None: the library
        alone, to train on Kaggle.
    owner, slug : str
        Of the data set, for `dataset-metadata.json`.
    python : str
        Version of the Python that is to install the wheels, such as "3.12".
    offline : bool
        Ask no registry; take wheels of what is installed here.

    Returns the folder, and the packages without a wheel with the reasons. Raises `DataError` when the run lacks a
    classifier or one of its members, its localizer cannot be read, there is no localizer at all, there is no wheel of
    timm-3d, the slug is not one, or `out` holds something else.
    """
    from ..localization import open_localizer

    out = Path(out)
    if not 6 <= len(slug) <= 50 or slug.strip("-") != slug or not slug.replace("-", "").isalnum():
        raise DataError(f"a data set's name on Kaggle has 6 to 50 letters, digits and dashes, got {slug!r}")
    packed = [] if run is None else _weights_of(Path(run))
    if len(packed) < 2:
        open_localizer(None)  # raises here and not on a machine without internet
    if out.is_dir() and any(out.iterdir()) and not (out / METADATA).is_file():
        raise DataError(f"{out} is not empty and holds no {METADATA}; give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    library = library_folder() / "lumbar_utils"
    for name in (library.name, WHEELS, "classifier", "localizer"):  # of an earlier build
        shutil.rmtree(out / name, ignore_errors=True)
    clean = shutil.ignore_patterns("__pycache__", "*.pyc", "checkpoint.safetensors", ".*")
    for folder in (library, *packed):
        shutil.copytree(folder, out / folder.name, ignore=clean)
    lacking = collect_wheels(out / WHEELS, python=python, offline=offline)
    if "timm-3d" in lacking:
        raise DataError(f"no wheel of timm-3d, which every classifier needs: {lacking['timm-3d']}")
    about = {
        "title": slug,
        "id": f"{owner}/{slug}",
        "subtitle": SUBTITLE,
        "description": DESCRIPTION,
        "licenses": [{"name": "other"}],
    }
    write_json(out / METADATA, about)
    return out, lacking


def _weights_of(run: Path) -> list[Path]:
    """The folders of a run to pack: `classifier/`, and `localizer/` where it holds weights."""
    from ..localization import open_localizer
    from ..models.ensemble import ENSEMBLE, member_folders

    classifier, localizer = run / "classifier", run / "localizer"
    if (run / ENSEMBLE).is_file():
        raise DataError(f"{run / ENSEMBLE}: a list of several runs cannot be packed; put it and them into a data set")
    lacking = [folder for folder in member_folders(classifier) if not (folder / WEIGHTS_FILE).is_file()]
    if lacking:
        raise DataError(f"no weights in {lacking[0]}; train first (`make run`)")
    if not (localizer / WEIGHTS_FILE).is_file():
        return [classifier]
    open_localizer(localizer)
    return [classifier, localizer]


def build_kernels(
    out: Path | str, notebooks: Path | str, *, owner: str = "OWNER", slug: str = SLUG, weights_packed: bool = False
) -> list[Path]:
    """Make one folder for each of the notebooks, to be pushed with `kaggle kernels push -p FOLDER`.

    Parameters
    ----------
    out : path-like
        Folder of the folders; what an earlier call left there is replaced.
    notebooks : path-like
        Where `01_eda.ipynb` and so on lie. They are copied as they are, without outputs.
    owner, slug : str
        Of the library's data set; the owner is the kernels' as well.
    weights_packed : bool
        Whether the data set holds a classifier: 05 then needs no output of others. 06 needs a training's, always.

    Returns the folders, in order. Raises `DataError` when there are no notebooks, or `out` holds something else.
    """
    out, notebooks = Path(out), Path(notebooks)
    found = {path.stem[:2]: path for path in sorted(notebooks.glob("0[1-6]_*.ipynb"))}
    if set(found) != set(NEEDS):
        raise DataError(f"expected notebooks 01 to 06 in {notebooks}, found {sorted(p.name for p in found.values())}")
    strange = [p for p in out.iterdir() if not (p / KERNEL_METADATA).is_file()] if out.is_dir() else []
    if strange:
        raise DataError(f"{strange[0]} was not made by `lumbar kaggle build`; give a new folder")
    shutil.rmtree(out, ignore_errors=True)
    names = {number: f"lumbar-{path.stem.replace('_', '-')}" for number, path in found.items()}
    folders = []
    for number, path in found.items():
        folder = out / path.stem
        folder.mkdir(parents=True)
        needed = () if number == "05" and weights_packed else NEEDS[number]
        about = {
            "id": f"{owner}/{names[number]}",
            "title": names[number].replace("-", " "),
            "code_file": path.name,
            "language": "python",
            "kernel_type": "notebook",
            "is_private": True,
            "enable_gpu": number not in ON_CPU,
            "enable_tpu": False,
            "enable_internet": False,
            "dataset_sources": [f"{owner}/{slug}"],
            "competition_sources": [COMPETITION_SLUG],
            "kernel_sources": [f"{owner}/{names[n]}" for n in needed],
            "model_sources": [],
        }
        if number not in ON_CPU:
            about["machine_shape"] = ACCELERATOR
        book = json.loads(path.read_text("utf-8"))
        for cell in book["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"], cell["execution_count"] = [], None
        write_json(folder / KERNEL_METADATA, about)
        (folder / path.name).write_text(json.dumps(book, indent=1) + "\n", "utf-8")
        folders.append(folder)
    return folders
