"""The environment report: versions, device, decoders, data, weights, disk and time that a run will have here.

`lumbar doctor` prints it, and so does the first cell of each notebook. An *issue* keeps things from working; a
*warning* tells what will be slower, or missing for some files.
"""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path

from .. import __version__
from ..errors import LumbarError
from .machine import Machine, describe_machine, session_seconds_left
from .mounts import KAGGLE_INPUT
from .session import library_folder
from .workspace import WEIGHTS_FILE, find_data, find_localizer, find_weights, run_folder, short_path

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
MIN_DISK_GB = 1.0
MIN_HOURS_LEFT = 1.0
MAX_FILES_SEARCHED = 200
"""Files of a folder without the competition's tables, until one is an MR image; an archive would take minutes."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes
    ----------
    subject, text : str
    level : {"ok", "warning", "issue"}
    """

    subject: str
    text: str
    level: str = "ok"


@dataclass(frozen=True)
class EnvironmentReport:
    """What `environment_report` found; `str()` is the report.

    Attributes
    ----------
    machine : Machine
    versions : dict of str to str
        Of the packages in `TESTED`, "not installed" where absent.
    findings : tuple of Finding
    """

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
        return {
            "lumbar_utils": __version__,
            "ok": not self.issues,
            "issues": list(self.issues),
            "warnings": list(self.warnings),
            "device": str(compute.device),
            "precision": str(compute.dtype).removeprefix("torch."),
            "reason": compute.reason,
            "cores": machine.cores,
            "memory_gb": None if math.isnan(machine.memory_gb) else round(machine.memory_gb, 1),  # JSON has no nan
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

    Parameters
    ----------
    data, run, weights : path-like
        As a notebook's parameters; empty for what would be found by itself.
    notes : sequence of str
        Lines of `kaggle.prepare_session`, shown as they are.
    """
    machine = describe_machine(run_folder(run))
    versions = {"Python": platform.python_version()} | {name: _version(name) for name in TESTED if name != "Python"}
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


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


def _versions(installed: dict[str, str]) -> Finding:
    absent = [name for name, version in installed.items() if version == NOT_INSTALLED]
    parts, older = [], []
    for name, version in installed.items():
        tested = TESTED[name]
        known = any(version == t or version.split("+")[0] == t or version.startswith(t + ".") for t in tested)
        parts.append(f"{name} {version}" if known else f"{name} {version} (tested: {', '.join(tested)})")
        if name not in absent and _numbers(version) < min(map(_numbers, tested)):
            older.append(name)
    text = ", ".join(parts)
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

    compute, visible = machine.compute, torch.cuda.is_available()
    if visible and compute.device.type == "cpu":
        return [Finding("device", f"{compute}; the CPU is used instead", "warning")]
    findings = [Finding("device", str(compute))]
    if visible and torch.cuda.device_count() > 1:
        how = "training uses all of them through `accelerate launch` (notebook 04, README)"
        findings.append(Finding("GPUs", f"{torch.cuda.device_count()}; {how}"))
    return findings


def _disk(machine: Machine) -> Finding:
    if machine.free_disk_gb < MIN_DISK_GB:
        return Finding("machine", f"{machine}; too little disk space, {MIN_DISK_GB:g} GB are needed", "issue")
    return Finding("machine", str(machine))


def _decoders() -> Finding:
    """What pydicom can decode now: it looks for its plugins once, when it is imported."""
    from pydicom.pixels import get_decoder

    parts, absent = [], []
    for name, (syntax, package) in DECODERS.items():
        plugins = get_decoder(syntax).available_plugins
        parts.append(f"{name}: {', '.join(plugins) if plugins else 'none'}")
        absent += [] if plugins else [package]
    if absent:
        parts.append(f"such files cannot be read; pip install {' '.join(dict.fromkeys(absent))}, and restart")
    return Finding("decoders", "; ".join(parts), "warning" if absent else "ok")


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
    return any(one.shape[0] and str(one.header.get("Modality") or "MR").upper() == "MR" for one in found)


def _weights(run: Path, given: str | Path) -> Finding:
    try:
        classifier = f"classifier in {short_path(find_weights('classifier', given, run))}"
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
