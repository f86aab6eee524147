"""The environment report: versions, device, decoders, data, weights, disk and time that a run will have here.

`lumbar doctor` prints it, and so does the first cell of each notebook. An *issue* keeps things from working; a
*warning* tells what will be slower, or missing for some files.
"""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import LumbarError
from . import workspace
from .wheels import distribution, library_folder
from .workspace import KAGGLE_INPUT, WEIGHTS_FILE, find_data, find_localizer, find_weights, run_folder, short_path

if TYPE_CHECKING:
    from ..devices import Compute

TESTED = {
    "Python": ("3.11", "3.12"),
    "torch": ("2.15.0", "2.10.0"),
    "torchvision": ("0.29.2", "0.25.0"),
    "timm": ("1.0.31", "1.0.26"),
    "timm-3d": ("1.0.1",),
    "pydicom": ("3.0.2", "3.0.1"),
    "numpy": ("2.4.6", "2.0.2"),
    "pandas": ("3.1.1", "2.3.3"),
    "albumentations": ("2.0.8",),
}
"""Versions in requirements.txt and, where they differ, in requirements-kaggle.txt (a test compares)."""
NOT_INSTALLED = "not installed"
DECODERS = {
    "JPEG lossless": ("1.2.840.10008.1.2.4.70", "python-gdcm"),
    "JPEG-LS": ("1.2.840.10008.1.2.4.80", "python-gdcm"),
    "JPEG 2000": ("1.2.840.10008.1.2.4.90", "pylibjpeg-openjpeg"),
}
"""Compression -> (transfer syntax, package that decodes it). Uncompressed and RLE files need none."""
SUBMISSION_HOURS, SESSION_HOURS = 9, 12
"""What Kaggle allows a submission to this competition, and any other session with a CPU or a GPU."""
MIN_DISK_GB = 1.0
MIN_HOURS_LEFT = 1.0
MAX_FILES_SEARCHED = 200
"""Files of a folder without the competition's tables, until one is an MR image; an archive would take minutes."""


@dataclass(frozen=True)
class Machine:
    """What there is to compute with: device and precision, CPU cores that this process may use (fewer than the
    machine's in a container), main memory (nan when unknown), and the space left at the folder given."""

    compute: Compute
    cores: int
    memory_gb: float
    free_disk_gb: float

    def __str__(self) -> str:
        return f"{self.cores} cores, {self.memory_gb:.0f} GB memory, {self.free_disk_gb:.0f} GB disk free"


@dataclass(frozen=True)
class Finding:
    """One line of the report; its level is "ok", "warning" or "issue"."""

    subject: str
    text: str
    level: str = "ok"


@dataclass(frozen=True)
class EnvironmentReport:
    """What `environment_report` found; `str()` is the report, `versions` are those of `TESTED`."""

    machine: Machine
    versions: dict[str, str]
    findings: tuple[Finding, ...]

    @property
    def issues(self) -> tuple[str, ...]:
        """What keeps things from working."""
        return tuple(f"{f.subject}: {f.text}" for f in self.findings if f.level == "issue")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is slower, or missing for some files."""
        return tuple(f"{f.subject}: {f.text}" for f in self.findings if f.level == "warning")

    def to_json(self) -> dict:
        """The report for programs."""
        machine, compute = self.machine, self.machine.compute
        memory = None if math.isnan(machine.memory_gb) else round(machine.memory_gb, 1)  # JSON has no nan
        return {
            "lumbar_utils": __version__,
            "ok": not self.issues,
            "issues": list(self.issues),
            "warnings": list(self.warnings),
            "device": str(compute.device),
            "precision": str(compute.dtype).removeprefix("torch."),
            "reason": compute.reason,
            "cores": machine.cores,
            "memory_gb": memory,
            "free_disk_gb": round(machine.free_disk_gb, 1),
            "versions": {name: {"installed": v, "tested": list(TESTED[name])} for name, v in self.versions.items()},
            "findings": [vars(finding) for finding in self.findings],
        }

    def __str__(self) -> str:
        width = max(len(finding.subject) for finding in self.findings)
        marks = {"ok": " ", "warning": "!", "issue": "X"}
        return "\n".join(f"{marks[f.level]} {f.subject:<{width}}  {f.text}" for f in self.findings)


def environment_report(
    data: str | Path = "", run: str | Path = "", weights: str | Path = "", *, notes: Sequence[str] = ()
) -> EnvironmentReport:
    """Look at everything that a run needs; changes nothing, and never raises for what is absent.

    data, run, weights: as a notebook's parameters, empty for what would be found by itself; notes: lines of
    `kaggle.prepare_session`, shown as they are.
    """
    machine = describe_machine(run_folder(run))
    installed = {name: distribution(name) for name in TESTED}
    versions = {name: found.version if found else NOT_INSTALLED for name, found in installed.items()}
    versions["Python"] = platform.python_version()
    findings = [
        _library(),
        *(Finding("attached", line, "warning" if "could not" in line else "ok") for line in notes),
        _versions(versions),
        *_devices(machine),
        _disk(machine),
        _decoders(),
        _data(data, run),
        _weights(run_folder(run), weights),
        _time(),
    ]
    return EnvironmentReport(machine, versions, tuple(findings))


def _library() -> Finding:
    folder = library_folder()
    where = "a clone" if (folder / "notebooks").is_dir() else "installed by pip"
    where = f"attached data set {folder}" if KAGGLE_INPUT.resolve() in folder.parents else where
    return Finding("library", f"lumbar_utils {__version__}, {where}")


def _versions(installed: dict[str, str]) -> Finding:
    texts, absent, older = [], [], []
    for name, version in installed.items():
        tested = TESTED[name]
        known = any(f"{version.split('+')[0]}.".startswith(f"{t}.") for t in tested)
        texts.append(f"{name} {version}" if known else f"{name} {version} (tested: {', '.join(tested)})")
        if version == NOT_INSTALLED:
            absent.append(name)
        elif _numbers(version) < min(map(_numbers, tested)):
            older.append(name)
    text = ", ".join(texts)
    if absent:
        return Finding("versions", f"{text}; pip install {' '.join(absent)}", "issue")
    if older:
        return Finding("versions", f"{text}; older than any tested: {', '.join(older)}", "warning")
    return Finding("versions", text)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])


def _devices(machine: Machine) -> list[Finding]:
    """The device in use and why, also why a GPU that is there cannot be used; how to use several."""
    import torch

    compute, gpus = machine.compute, torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and compute.device.type == "cpu":
        return [Finding("device", f"{compute}; the CPU is used instead", "warning")]
    how = "training uses all of them through `accelerate launch` (notebook 04, README)"
    return [Finding("device", str(compute)), *([Finding("GPUs", f"{gpus}; {how}")] if gpus > 1 else [])]


def _disk(machine: Machine) -> Finding:
    if machine.free_disk_gb < MIN_DISK_GB:
        return Finding("machine", f"{machine}; too little disk space, {MIN_DISK_GB:g} GB are needed", "issue")
    return Finding("machine", str(machine))


def _decoders() -> Finding:
    """What pydicom can decode now: it looks for its plugins once, when it is imported."""
    from pydicom.pixels import get_decoder

    plugins = {name: get_decoder(syntax).available_plugins for name, (syntax, _) in DECODERS.items()}
    text = "; ".join(f"{name}: {', '.join(found) or 'none'}" for name, found in plugins.items())
    absent = dict.fromkeys(package for name, (_, package) in DECODERS.items() if not plugins[name])
    if not absent:
        return Finding("decoders", text)
    text += f"; such files cannot be read; pip install {' '.join(absent)}, and restart"
    return Finding("decoders", text, "warning")


def _data(data: str | Path, run: str | Path) -> Finding:
    from ..studies.competition import CompetitionFolder, is_competition_folder

    found = find_data(data, run)
    if found is None:
        return Finding("data", "none found; a synthetic cohort will be made")
    if not found.exists():
        return Finding("data", f"{found} does not exist", "issue")
    where = short_path(found)
    try:
        if not is_competition_folder(found) and _holds_mr(found):
            use = "to be located and predicted; training and notebooks need the tables of a competition folder"
            return Finding("data", f"MR images in {where}, {use}", "warning")
        folder = CompetitionFolder.open(found)
        counts = ", ".join(f"{len(folder.study_ids(part))} {part}" for part in ("train", "test"))
    except (LumbarError, OSError) as error:
        return Finding("data", str(error), "issue")
    return Finding("data", f"{'synthetic studies' if folder.is_synthetic else 'studies'} in {where}: {counts}")


def _holds_mr(path: Path) -> bool:
    """Whether there are MR images among the first files below a path."""
    from ..dicom.headers import scan_headers, walk_files

    found = (scan_headers(file)[0] for file in islice(walk_files(path), MAX_FILES_SEARCHED))
    return any(one.shape[0] and one.acquisition.is_mr for one in found)


def _weights(run: Path, given: str | Path) -> Finding:
    from ..models import run_folder

    try:
        found = find_weights("classifier", given, run)
        own_run = found != run_folder.SHIPPED_CLASSIFIER
        classifier = f"classifier in {short_path(found)}" if own_run else "the shipped classifier"
    except LumbarError:
        classifier = "no classifier yet"
    own = find_localizer(run)
    if own is not None:
        return Finding("weights", f"{classifier}; localizer in {short_path(own)}")
    shipped = library_folder() / "lumbar_utils" / "weights" / "shipped_localizer"
    if (shipped / WEIGHTS_FILE).is_file():
        return Finding("weights", f"{classifier}; the shipped localizer")
    lacking = f"no localizer: neither the library's weights nor the run have localizer/{WEIGHTS_FILE}"
    return Finding("weights", f"{classifier}; {lacking}", "issue")


def _time() -> Finding:
    left = session_seconds_left()
    if left is None:
        return Finding("time", "not a Kaggle session, no limit known")
    text = f"about {max(left, 0) / 3600:.1f} h left of this Kaggle session"
    return Finding("time", text, "warning" if left < 3600 * MIN_HOURS_LEFT else "ok")


def describe_machine(folder: Path | str = ".") -> Machine:
    """Device and precision with the reason, cores, memory, and disk space free at `folder`, which need not exist."""
    import joblib

    from ..devices import choose_compute

    place = Path(folder).absolute()
    place = next(parent for parent in (place, *place.parents) if parent.is_dir())
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):
        memory = float("nan")
    return Machine(choose_compute(), joblib.cpu_count(), memory, shutil.disk_usage(place).free / 1e9)


def session_seconds_left() -> float | None:
    """Seconds until Kaggle ends this session, an estimate; None elsewhere.

    Kaggle does not tell when a session began. Its container is made for the session, so the age of the container's
    first process is taken. A submission's second run, on the hidden test part, has `SUBMISSION_HOURS`.
    """
    if not workspace.KAGGLE_WORKING.is_dir():
        return None
    hours = SUBMISSION_HOURS if os.environ.get("KAGGLE_IS_COMPETITION_RERUN") else SESSION_HOURS
    return 3600 * hours - _age_of_first_process()


def _age_of_first_process() -> float:
    """Seconds since process 1 began, 0 where this cannot be known. proc(5): starttime is field 22 of stat."""
    try:
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        after_name = Path("/proc/1/stat").read_text().rpartition(")")[2].split()
        return max(0.0, uptime - int(after_name[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
