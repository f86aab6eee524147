"""Files that the library writes: atomically, under names that are safe anywhere, with the versions that made them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import stat
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError

from .errors import DataError

PACKAGES = ("torch", "timm-3d", "timm", "numpy", "pandas", "pydicom", "scikit-learn", "albumentations")
PLAIN_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._ -]{0,98}[A-Za-z0-9_-])?")
"""What can be a file's name anywhere, and joined to a path without leaving its folder."""
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
"""Names that Windows gives to devices."""


def file_name(study_id: str) -> str:
    """A study's id as a file's name without ending: itself where it is plain, else what is plain of it and a hash.

    Headers, folders and tables can hold anything: `../../x`, a device of Windows, a formula, characters that turn the
    line round. Different ids get different names.
    """
    if PLAIN_NAME.fullmatch(study_id) and not RESERVED.fullmatch(study_id):
        return study_id
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", study_id)[:60].strip("_-") or "study"
    return hashed(readable, study_id)


def hashed(kind: str, name: str) -> str:
    """`kind` and the first 12 hexadecimal digits of the SHA-256 of a name, for names that are not to be shown."""
    return f"{kind}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary_path)` and move the result to `path`, so that a reader never sees half a file.

    A full disk raises `DataError`; the old file, if any, is still there.
    """
    path = Path(path)
    refuse_special(path)
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


def refuse_special(path: Path) -> None:
    """Raise `DataError` for a link, folder, pipe or device: only a plain file is replaced, and no link is followed."""
    if os.path.lexists(path) and not stat.S_ISREG(mode := os.lstat(path).st_mode):
        kinds = {stat.S_IFLNK: "link", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe"}
        kind = kinds.get(stat.S_IFMT(mode), "device")
        raise DataError(f"{path} is a {kind}, and only a plain file may be replaced; name another file")


def write_text(path: Path, text: str) -> None:
    """Write text atomically, in UTF-8; bytes of a file's name that are no text become escapes."""
    atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(path: Path, values: Mapping) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(values, indent=1))


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


def write_table(path: Path, frame: pd.DataFrame, *, float_format: str | None = "%.9g") -> None:
    """Write a CSV atomically with 9 significant digits, or with all of them (`float_format=None`)."""
    options = {"index": False, "float_format": float_format, "lineterminator": "\n", "errors": "backslashreplace"}
    atomically(path, lambda temporary: frame.to_csv(temporary, **options))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found
