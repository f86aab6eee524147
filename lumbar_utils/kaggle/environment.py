"""What a run would meet here: versions, device, decoders, data, weights, disk, time. `lumbar doctor`, and the first
thing a notebook prints.

A *issue* keeps things from working; a *warning* says what will be slower, or missing for some files.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from .. import __version__
from ..dicom.headers import scan_headers, walk_files
from ..errors import LumbarError
from .machine import Machine, describe_machine, session_seconds_left
from .mounts import KAGGLE_INPUT
from .session import library_folder
from .workspace import WEIGHTS_FILE, find_data, find_localizer, find_weights, run_folder

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
DECODERS = {
    "JPEG lossless": ("1.2.840.10008.1.2.4.70", "python-gdcm"),
    "JPEG-LS": ("1.2.840.10008.1.2.4.80", "python-gdcm"),
    "JPEG 2000": ("1.2.840.10008.1.2.4.90", "pylibjpeg-openjpeg"),
}
"""Compression -> (transfer syntax, package that decodes it). Uncompressed and RLE files need none."""
MIN_DISK_GB = 1.0
SHORT_OF_TIME_H = 1.0
FILES_LOOKED_AT = 200
"""Files of a folder that is no competition's, until one is an MR image."""


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
    findings : tuple of Finding
    """

    machine: Machine
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
        """The report for machines; keys stay what they are."""
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
            "memory_gb": _rounded(machine.memory_gb),
            "free_disk_gb": _rounded(machine.free_disk_gb),
            "versions": {
                name: {"installed": version, "tested": list(TESTED.get(name, ()))}
                for name, version in machine.versions.items()
            },
            "findings": [{"subject": f.subject, "level": f.level, "text": f.text} for f in self.findings],
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
    folder = run_folder(run)
    machine = describe_machine(_nearest_existing(folder))
    findings = [
        Finding("library", _library_words()),
        *(Finding("attached", line, "warning" if "could not" in line else "ok") for line in notes),
        _versions(machine.versions),
        *_devices(machine),
        _disk(machine),
        _decoders(),
        _data(data, run),
        *_weights(folder, weights),
        _time(),
    ]
    return EnvironmentReport(machine, tuple(findings))


def _library_words() -> str:
    folder = library_folder()
    if KAGGLE_INPUT.resolve() in folder.parents:
        return f"lumbar_utils {__version__}, attached data set {folder}"
    where = "a clone" if (folder / "notebooks").is_dir() else "installed by pip"
    return f"lumbar_utils {__version__}, {where}"


def _versions(installed: dict[str, str]) -> Finding:
    absent = [name for name, version in installed.items() if version == "not installed"]
    words, older = [], []
    for name, version in installed.items():
        tested = TESTED.get(name, ())
        known = any(version == t or version.split("+")[0] == t or version.startswith(t + ".") for t in tested)
        words.append(f"{name} {version}" if known or not tested else f"{name} {version} (tested: {', '.join(tested)})")
        if tested and name not in absent and _numbers(version) < min(map(_numbers, tested)):
            older.append(name)
    text = ", ".join(words)
    if absent:
        return Finding("versions", f"{text}; pip install {' '.join(absent)}", "issue")
    if older:
        return Finding("versions", f"{text}; older than any tested: {', '.join(older)}", "warning")
    return Finding("versions", text)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])


def _devices(machine: Machine) -> list[Finding]:
    """The device in use and why; a GPU that cannot be used is refused in so many words; how to use a second one."""
    import torch

    compute, visible = machine.compute, torch.cuda.is_available()
    refused = visible and compute.device.type == "cpu"
    text = f"{compute}; going on with the CPU" if refused else str(compute)
    findings = [Finding("device", text, "warning" if refused else "ok")]
    count = torch.cuda.device_count() if visible and not refused else 0
    if count > 1:
        findings.append(
            Finding("GPUs", f"{count}; training uses all of them through `accelerate launch` (notebook 04, README)")
        )
    return findings


def _disk(machine: Machine) -> Finding:
    scarce = machine.free_disk_gb < MIN_DISK_GB
    text = f"{machine.sizes}; too little disk to go on" if scarce else machine.sizes
    return Finding("machine", text, "issue" if scarce else "ok")


def _decoders() -> Finding:
    """What pydicom can decode now: it looks for its plugins once, when it is imported."""
    from pydicom.pixels import get_decoder

    words, absent = [], []
    for name, (syntax, package) in DECODERS.items():
        plugins = get_decoder(syntax).available_plugins
        words.append(f"{name}: {', '.join(plugins) if plugins else 'none'}")
        absent += [] if plugins else [package]
    if absent:
        words.append(f"such files cannot be read; pip install {' '.join(dict.fromkeys(absent))}, and start anew")
    return Finding("decoders", "; ".join(words), "warning" if absent else "ok")


def _data(data: str | Path, run: str | Path) -> Finding:
    from ..studies.study import CompetitionFolder, is_competition_folder

    found = find_data(data, run)
    if found is None:
        return Finding("data", "none found; a synthetic cohort will be made")
    try:
        if not found.exists():
            return Finding("data", f"{found} does not exist", "issue")
        if not is_competition_folder(found) and _holds_mr(found):
            words = "to be located and graded; training and notebooks need the tables of a competition folder"
            return Finding("data", f"MR images in {_seen(found)}, {words}", "warning")
        folder = CompetitionFolder.open(found)
        counts = ", ".join(f"{len(folder.study_ids(part))} {part}" for part in ("train", "test"))
    except (LumbarError, OSError) as error:
        return Finding("data", str(error), "issue")
    return Finding("data", f"{'synthetic studies' if folder.is_synthetic else 'studies'} in {_seen(found)}: {counts}")


def _holds_mr(path: Path) -> bool:
    """Whether there are MR images among the first files below a path; a whole archive would take minutes to read."""
    for file in islice(walk_files(path), FILES_LOOKED_AT):
        header = scan_headers(file)[0]
        if header.shape[0] and str(header.header.get("Modality") or "MR").upper() == "MR":
            return True
    return False


def _weights(run: Path, given: str | Path) -> list[Finding]:
    shipped = library_folder() / "lumbar_utils" / "weights" / "localizer.safetensors"
    words = []
    try:
        words.append(f"classifier in {_seen(find_weights('classifier', given, run))}")
    except LumbarError:
        words.append("no classifier yet")
    own = find_localizer(run)
    if own is not None:
        words.append(f"localizer in {_seen(own)}")
    elif shipped.is_file():
        words.append("the localizer that ships")
    else:
        words.append(f"no localizer: {shipped.name} is absent from the library, expected {WEIGHTS_FILE} in the run")
    issue = own is None and not shipped.is_file()
    return [Finding("weights", "; ".join(words), "issue" if issue else "ok")]


def _time() -> Finding:
    left = session_seconds_left()
    if left is None:
        return Finding("time", "not a Kaggle session, no limit known")
    text = f"about {max(left, 0) / 3600:.1f} h left of this Kaggle session"
    return Finding("time", text, "warning" if left < 3600 * SHORT_OF_TIME_H else "ok")


def _seen(path: Path) -> str:
    """Relative inside and beside the current folder, so that no machine's folders are shown; Kaggle's in full."""
    if KAGGLE_INPUT in path.parents:
        return str(path)
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(Path(path).absolute())) else str(path)


def _nearest_existing(folder: Path) -> Path:
    return next((p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir()), Path("."))


def _rounded(value: float) -> float | None:
    """JSON has no nan."""
    return None if math.isnan(value) else round(value, 1)
