"""Completing a library that is attached as a data set: its wheels are installed, offline, and child processes find it.

The data set holds the package `lumbar_utils/` and a folder `wheels/` with what Kaggle's image lacks. The library is
imported from where it is mounted (read-only); each wheel is installed by itself, without an index, so that a decoder
whose wheel does not fit the image's Python costs no more than that decoder.

Call `prepare_session` before anything imports pydicom, which looks for decoders once, when it is imported. Therefore
nothing in `lumbar_utils.kaggle` imports it at the top of a module.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

WHEELS = "wheels"
"""Folder of wheels beside the package."""


def library_folder() -> Path:
    """The folder that holds the package `lumbar_utils`: a clone, site-packages, or a mounted data set."""
    return Path(__file__).resolve().parent.parent.parent


def prepare_session(library: Path | str | None = None) -> tuple[str, ...]:
    """Install the attached wheels that are not there yet, and put the library on PYTHONPATH for child processes.

    In a clone or after pip there are no wheels beside the library, and nothing is installed. A second call does
    nothing again.

    Parameters
    ----------
    library : path-like
        Default: `library_folder()`.

    Returns
    -------
    tuple of str
        A line for what was installed, if anything was, and one for each wheel that could not be, and why.
    """
    library = Path(library) if library is not None else library_folder()
    # `accelerate launch` and workers start new interpreters, which do not inherit sys.path.
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if str(library) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(library), *paths])
    installed, lines = [], []
    for wheel in sorted((library / WHEELS).glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        name = name.replace("_", "-")
        if _is_installed(name):
            continue
        error = _install(wheel)
        if error:
            lines.append(f"{name} {version} could not be installed from {wheel.parent}: {error}")
        else:
            installed.append(f"{name} {version}")
    importlib.invalidate_caches()
    if installed and "pydicom" in sys.modules:
        lines.append("pydicom could not find the decoders that were just installed, it was imported before: restart")
    return ((f"installed {', '.join(installed)}",) if installed else ()) + tuple(lines)


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _install(wheel: Path) -> str:
    """Install one wheel by pip; the error, "" when there was none."""
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--root-user-action=ignore", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else " ".join(done.stderr.split()[:40]) or f"pip ended with {done.returncode}"
