"""Files that the library writes: atomically, under names that are safe anywhere, with the versions that made them."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError

from .errors import DataError, OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PACKAGES = ("torch", "timm-3d", "timm", "numpy", "pandas", "pydicom", "scikit-learn", "albumentations")
PLAIN_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._ -]{0,98}[A-Za-z0-9_-])?")
"""What can be a file's name anywhere, and joined to a path without leaving its folder."""
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
"""Names that Windows gives to devices."""
SCRATCH = ".lumbar-partial"
"""Ending of the folders in which files are written before they are moved to their place."""
LONGEST = 50
"""Characters of a file's name in that of such a folder: file systems allow 255 bytes."""


def file_name(study_id: str) -> str:
    """A study's id as a file's name without ending: itself where it is plain, else what is plain of it and a hash.

    Ids can be anything, such as `../../x`, a device of Windows or a formula. Different ids get different names.
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

    Any number of processes may write the same file at once. What a killed process left half written is removed.
    A full disk raises `OutputError`; the old file, if any, is still there.
    """
    path = Path(path)
    refuse_special(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        with _scratch_folder(path) as folder:  # a folder, because some writers make temporary files of their own
            temporary = folder / path.name
            write(temporary)
            os.chmod(temporary, 0o644)  # safetensors makes files that nobody else can read
            os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path}: cannot be written ({error}); disk full? What was there before is kept") from error


@contextmanager
def _scratch_folder(path: Path) -> Iterator[Path]:
    """A locked folder beside the file to be written, of a name that `remove_leftovers` knows."""
    name = f".{path.name[:LONGEST]}."
    with ExitStack() as stack:
        while True:
            made = tempfile.TemporaryDirectory(SCRATCH, name, path.parent, ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(made))
            with suppress(FileNotFoundError):  # another process took it for a leftover before it was locked
                stack.enter_context(lock_folder(folder, wait=True))
                if folder.is_dir():
                    break
        yield folder


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove what processes that were killed while they wrote (the file `name`) left half written in a folder."""
    for left in folder.glob(f".{glob.escape(name[:LONGEST])}*{SCRATCH}"):
        with suppress(OSError), lock_folder(left) as held:
            if held:  # nobody writes there any more
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def lock_folder(folder: Path, *, wait: bool = False) -> Iterator[bool | None]:
    """Hold the lock of a folder, which ends with the process, however that ends.

    Yields whether it is held: False where another process or thread has it, None where the system or the file system
    has no such locks.
    """
    if fcntl is None:
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _LOCKS.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            held = False
        except OSError:
            held = None
        yield held
    finally:
        if descriptor in _LOCKS:
            _LOCKS.remove(descriptor)
            os.close(descriptor)


_LOCKS: set[int] = set()


def _give_up_locks() -> None:
    """In a forked child, such as a data loader's: or it would keep the locks of a parent that is killed."""
    while _LOCKS:
        os.close(_LOCKS.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_give_up_locks)


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
