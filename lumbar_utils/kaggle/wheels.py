"""Wheels of what Kaggle's image lacks, timm-3d and decoders of compressed DICOM pixels: packed here, installed there.

They come from the package registry through pip, for Kaggle's Python and Linux. Without the registry, what is installed
here is packed again where it fits: pure Python always, compiled code only for the same Python and system.

There the data set holds the package `lumbar_utils/` and a folder `wheels/`. The library is imported from where it is
mounted (read-only); each wheel is installed by itself, without an index, so that a decoder whose wheel does not fit the
image's Python costs no more than that decoder. Call `prepare_session` before anything imports pydicom, which looks for
decoders once, when it is imported. Therefore nothing in `lumbar_utils.kaggle` imports it at the top of a module.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

WHEELS = "wheels"  # folder of wheels beside the package
LACKING = ("timm-3d", "python-gdcm", "pylibjpeg", "pylibjpeg-openjpeg")
"""What Kaggle's image of 2026 does not have; nothing else that these need is absent there."""
KAGGLE_PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
NOT_PACKED = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json")
"""Files of an installation's dist-info that a wheel does not have; RECORD is written again."""


def collect_wheels(
    out: Path | str, *, python: str = KAGGLE_PYTHON, offline: bool = False, packages: tuple[str, ...] = LACKING
) -> dict[str, str]:
    """Put one wheel of each package into a folder; for each package without one: why. The versions are those installed
    here, as they are the ones that were tested; of what is not installed, the newest."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    lacking = {}
    for package in packages:
        error = "not asked" if offline else _download(package, out, python)
        if error and (reason := _pack_installed(package, out, python)):
            lacking[package] = f"{reason}; the registry: {error}"
    return lacking


def _download(package: str, out: Path, python: str) -> str:
    """`pip download` one wheel; the error, "" when there was none."""
    installed = distribution(package)
    wanted = package if installed is None else f"{package}=={installed.version}"
    abi = "cp" + python.replace(".", "")
    options = ["--no-deps", "--retries", "1", "--timeout", "20", "--only-binary", ":all:", "--implementation", "cp"]
    options += ["--python-version", python, "--abi", abi, "--abi", "abi3", "--abi", "none", "--dest", str(out)]
    options += [part for platform in (*PLATFORMS, "any") for part in ("--platform", platform)]
    return pip("download", *options, wanted)


def _pack_installed(package: str, out: Path, python: str) -> str:
    """Make a wheel of an installed package again; the reason why not, "" when it was made. The format:
    https://packaging.python.org/en/latest/specifications/binary-distribution-format/"""
    found = distribution(package)
    if found is None or not found.files:
        return "not installed here"
    tags = [line.partition(":")[2].strip() for line in (found.read_text("WHEEL") or "").splitlines() if "Tag:" in line]
    abi = "cp" + python.replace(".", "")
    fitting = [tag for tag in tags if tag.endswith("-none-any") or tag.startswith((f"{abi}-", "abi3-"))]
    if not fitting:
        return f"installed here for {', '.join(tags) or 'an unknown Python'}, which does not fit Python {python}"
    name, version = package.replace("-", "_"), found.version
    wheel, record = out / f"{name}-{version}-{fitting[0]}.whl", []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in found.files:
            if ".." in file.parts or file.suffix == ".pyc" or (".dist-info" in str(file) and file.name in NOT_PACKED):
                continue
            content = Path(found.locate_file(file)).read_bytes()
            archive.writestr(file.as_posix(), content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{file.as_posix()},sha256={digest},{len(content)}")
        listed = f"{name}-{version}.dist-info/RECORD"
        archive.writestr(listed, "\n".join([*record, f"{listed},,", ""]))
    return ""


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
