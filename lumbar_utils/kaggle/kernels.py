"""The notebooks as folders to push to Kaggle, each with its `kernel-metadata.json`.

What a notebook needs of those before it comes as their output, attached (`kernel_sources`). Nothing needs the internet:
the library's data set brings what Kaggle's image lacks.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..errors import DataError
from ..files import write_json
from .dataset import SLUG
from .mounts import COMPETITION_SLUG

METADATA = "kernel-metadata.json"
ACCELERATOR = "NvidiaTeslaT4"
"""Two T4. Kaggle's P100 is no longer served by its image's torch."""
NEEDS = {"01": (), "02": (), "03": ("02",), "04": ("02", "03"), "05": ("02", "04"), "06": ("02", "03", "04")}
"""Whose output a notebook reads, by number; `workspace.open_workspace` copies it into the run folder."""
ON_CPU = ("01", "06")


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

    Returns
    -------
    list of Path
        The folders, in order.

    Raises
    ------
    DataError
        When there are no notebooks, or `out` holds something else.
    """
    out, notebooks = Path(out), Path(notebooks)
    found = {path.stem[:2]: path for path in sorted(notebooks.glob("0[1-6]_*.ipynb"))}
    if set(found) != set(NEEDS):
        raise DataError(f"expected notebooks 01 to 06 in {notebooks}, found {sorted(p.name for p in found.values())}")
    strange = [p for p in out.iterdir() if not (p / METADATA).is_file()] if out.is_dir() else []
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
        write_json(folder / METADATA, about)
        (folder / path.name).write_text(_without_outputs(path), "utf-8")
        folders.append(folder)
    return folders


def _without_outputs(path: Path) -> str:
    book = json.loads(path.read_text("utf-8"))
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    return json.dumps(book, indent=1) + "\n"
