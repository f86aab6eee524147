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

WHEELS = "wheels"  # folder of wheels beside the package


def library_folder() -> Path:
    """The folder that holds the package `lumbar_utils`: a clone, site-packages, or a mounted data set."""
    return Path(__file__).resolve().parent.parent.parent


def prepare_session(library: Path | str | None = None) -> tuple[str, ...]:
    """Install the attached wheels that are not there yet, and put the library on PYTHONPATH for child processes.

    Beside `library` (default: `library_folder()`) there are none in a clone or after pip, and nothing is installed. A
    second call does nothing again. Returns a line for what was installed, if anything was, and one for each wheel that
    could not be, and why.
    """
    library = Path(library) if library is not None else library_folder()
    # `accelerate launch` and workers start new interpreters, which do not inherit sys.path.
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if str(library) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(library), *paths])
    installed, failed = [], []
    for wheel in sorted((library / WHEELS).glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        package = f"{name.replace('_', '-')} {version}"
        if distribution(name) is not None:
            continue
        if error := pip("install", "--no-index", "--no-deps", "--root-user-action=ignore", str(wheel)):
            failed.append(f"{package} could not be installed from {wheel.parent}: {error}")
        else:
            installed.append(package)
    importlib.invalidate_caches()
    if installed and "pydicom" in sys.modules:
        failed.append("pydicom could not find the decoders that were just installed, it was imported before: restart")
    return (*([f"installed {', '.join(installed)}"] if installed else []), *failed)


def distribution(package: str) -> metadata.Distribution | None:
    """What is installed under that name, None where nothing is."""
    try:
        return metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return None


def pip(command: str, *arguments: str) -> str:
    """Run pip; its error, "" when there was none."""
    whole = [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(whole, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return errors[-1] if errors else " ".join(done.stderr.split()[:40]) or f"pip ended with {done.returncode}"
