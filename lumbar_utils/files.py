"""Files that the library writes: atomically, under names that are safe anywhere, with the versions that made them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError

from .errors import DataError

PACKAGES = ("torch", "timm-3d", "timm", "numpy", "pandas", "pydicom", "scikit-learn", "albumentations")
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
"""Names that Windows gives to devices."""


def file_name(study_id: str) -> str:
    """A study's id as a file's name without ending, which no id can leave its folder by; different ids differ."""
    if PLAIN_NAME.fullmatch(study_id) and not RESERVED.fullmatch(study_id) and not study_id.endswith("."):
        return study_id
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", study_id)[:60].strip("_") or "study"
    return f"{readable}-{hashlib.sha256(study_id.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary_path)` and move the result to `path`, so that a reader never sees half a file.

    A full disk raises `DataError`; the old file, if any, is still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.chmod(temporary, 0o644)  # safetensors makes files that nobody else can read
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be written ({error}); disk full? What was there before is kept") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Mapping) -> None:
    """Write JSON atomically."""
    text = json.dumps(values, indent=1)
    atomically(path, lambda temporary: temporary.write_text(text))


def read_json(path: Path) -> dict:
    """Read a JSON object; raises `DataError` naming the file."""
    try:
        values = json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a CSV atomically with 9 significant digits."""
    atomically(path, lambda temporary: frame.to_csv(temporary, index=False, float_format="%.9g"))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found
