"""Wheels of what Kaggle's image lacks: timm-3d, and the decoders of compressed DICOM pixels.

They come from the package registry through pip, for Kaggle's Python and Linux. Without the registry, what is installed
here is packed again where it fits: pure Python always, compiled code only for the same Python and system.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

from .session import distribution, pip

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
